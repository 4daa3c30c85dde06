-- The graph of a session for a commit that does more than append nodes with strict checks (graph.lua): the commit
-- replaces the graph, keeps only its first nodes, accepts links by id alone, or imports a graph.

-- Count the nodes that were tombstoned after a read. `seen` has the epoch of the log that was read, and the number of
-- nodes that had been tombstoned by then; '' if unknown. That number only grows within an epoch.
local function tombstoned_since(seen, facts)
  local epoch, hidden = string.match(seen, '^(%d+) (%d+)$')
  if not (facts and epoch == facts.epoch) then return 0 end
  return facts.length - facts.live - hidden
end

-- Decode the claim of a replacement that keeps the first of the stored nodes: `extend <epoch> <nodes> <bytes> <drops>
-- <less> <mark><low>`. These are: the epoch of the log that it extends; the number and the total bytes of its records;
-- the number and the bytes of the last records that it drops; the checksum of the last record; the low half of the
-- log's sum (4 bytes each). Nil for another delta; false if another log is stored, or if some of its nodes are hidden.
local function read_claim(delta, facts, log)
  local epoch, length, bytes, drops, less, mark, low =
    string.match(delta, '^extend (%d+) (%d+) (%d+) (%d+) (%d+) (....)(....)$')
  if not epoch then return nil end
  local same = facts and facts.epoch == epoch and facts.length == tonumber(length) and facts.live == facts.length
    and facts.ids == facts.length and facts.loose == '0' and facts.bytes == bytes and in_bytes(facts.low) == low
    and string.sub(redis.call('LINDEX', log, -1), -4) == mark
  return same and {drops = tonumber(drops), less = tonumber(less)}
end

-- Plan the removal of the nodes behind the first `base`, whose ids are in ARGV from `gone` on. The plan: how many of
-- them are messages of `users`, and how many `jumps` are kept. Or nil and the rest of a refusal.
local function plan_cut(facts, nodes, jumps, base, drops, gone)
  local cut = {users = 0, jumps = facts.jumps}
  for from = 0, drops - 1, 1000 do
    local entries = redis.call('HMGET', nodes, unpack(ARGV, gone + from, gone + math.min(from + 1000, drops) - 1))
    for offset, entry in ipairs(entries) do
      local place, is_user = position_of(entry or '', facts)
      if place ~= base + from + offset - 1 then return nil, {'unlike'} end
      if is_user then cut.users = cut.users + 1 end
    end
  end
  while drops > 0 and cut.jumps > 0 do
    local from = math.max(cut.jumps - 1000, 0)
    local part = redis.call('LRANGE', jumps, from, cut.jumps - 1)
    cut.jumps = from
    for index = #part, 1, -1 do
      local place = read_jump(part[index])
      if not place then return nil, {'corrupt', 'jumps', 'an entry is unreadable'} end
      if place < base then cut.jumps = from + index break end
    end
    if cut.jumps > from then break end
  end
  return cut
end

-- Count the new ids that were only named as a parent so far, which lenient checks allow; or return nil and the rest of
-- a refusal. The id of a node behind `base` is free, because this commit drops the node.
local function count_retaken(facts, nodes, base, strict, count, ids)
  local retaken = 0
  for from = 0, count - 1, 1000 do
    local to = math.min(from + 1000, count) - 1
    local taken = redis.call('HMGET', nodes, unpack(ARGV, ids + from, ids + to))
    for offset = 1, to - from + 1 do
      local entry = taken[offset]
      local place = entry and base < facts.length and position_of(entry, facts)
      if entry and not (place and place >= base) then
        if strict or entry ~= '?' then return nil, {'collision', from + offset - 1} end
        retaken = retaken + 1
      end
    end
  end
  return retaken
end

-- Find the node of an id for a commit `as` (see plan_links): what locate returns, but nil for a node that it drops.
local function find(id, facts, nodes, dead, as)
  local place, position = locate(redis.call('HGET', nodes, id), facts, dead)
  if as.drops > 0 and type(place) == 'number' and place >= as.base then return nil end
  return place, position
end

-- Return the position of the stored node `id`, the parent of the `index`-th new node, -1 if it is only named; or nil
-- and the rest of a refusal. Adds new names and loose links to `plan`.
local function place_parent(id, index, facts, nodes, dead, as, plan)
  local place, position = find(id, facts, nodes, dead, as)
  if place == 'broken' then return nil, broken_index() end
  if not as.replaces and type(place) == 'number' then return place end
  if not as.strict then
    plan.loose = true
    return not as.replaces and position or -1
  end
  local was_empty = as.replaces or (facts.live == 0 and facts.dead == 0)
  local is_first = was_empty and (index == 0 or as.moves)
  local was_there = as.replaces and (place == 'dead' or place == 'named')
  if not is_first and not was_there then return nil, {'parent', index} end
  if not plan.named[id] and (as.replaces or not place) then
    plan.named[id] = true
    plan.names[#plan.names + 1], plan.names[#plan.names + 2] = id, '?'
  end
  return -1
end

-- Plan the links of the new nodes and the leaf, or return nil and the rest of a refusal. `as` describes the commit: it
-- `replaces` the whole graph; `base`, the position of the first new node; `strict` checks; it `moves` the session here
-- from another store; `drops`, the number of dropped nodes. The plan: new `jumps`; `names`, fields and values for ids
-- that are only named; the position of the `leaf`; `loose`, whether a link is by id alone.
local function plan_links(facts, nodes, dead, as, count, ids, leaf)
  local plan, links, base = {jumps = {}, names = {}, named = {}, leaf = -1}, ids + count, as.base
  for index = 0, count - 1 do
    local link, above, refusal = ARGV[links + index]
    local mark = string.sub(link, 1, 1)
    if link == '' then
      above = base + index - 1
    elseif mark == '@' then
      above = base + tonumber(string.sub(link, 2))
      if above >= base + index then above, plan.loose = -1, true end
    elseif mark == '-' then
      above = -1
    else
      above, refusal = place_parent(string.sub(link, 2), index, facts, nodes, dead, as, plan)
      if refusal then return nil, refusal end
    end
    if above ~= base + index - 1 then plan.jumps[#plan.jumps + 1] = (base + index) .. ':' .. above end
  end
  local mark = string.sub(leaf, 1, 1)
  if mark == '@' then
    plan.leaf = base + tonumber(string.sub(leaf, 2))
    return plan
  end
  if mark == '~' then
    plan.leaf = facts.leaf or -1
    return plan
  end
  local place = mark == '=' and not as.replaces and find(string.sub(leaf, 2), facts, nodes, dead, as) or nil
  if place == 'broken' then return nil, broken_index() end
  local live = count + (as.replaces and 0 or facts.live - as.drops)
  if type(place) == 'number' then
    plan.leaf = place
  elseif as.strict and (mark == '=' or live > 0) then
    return nil, {'leaf'}
  elseif mark == '=' then
    plan.loose = true
  end
  return plan
end
