-- The graph of a session where a commit does more than append to it with strict checks (graph.lua): it replaces the
-- graph, keeps only its first nodes, takes links by id alone, or puts a graph of another store here.

-- A replacement that keeps the first of the stored nodes claims
-- `extend <epoch> <nodes> <bytes> <drops> <less> <mark><low>`: which log it extends, how many records that has, how
-- long they are together, how many of the last it drops, how long those are, how the last one ends and the low half of
-- the log's sum (4 bytes each). Nil for another delta; false where another log is stored, or reads do not show all.
local function read_claim(delta, facts, log)
  local epoch, length, bytes, drops, less, mark, low =
    string.match(delta, '^extend (%d+) (%d+) (%d+) (%d+) (%d+) (....)(....)$')
  if not epoch then return nil end
  local same = facts and facts.epoch == epoch and facts.length == tonumber(length) and facts.live == facts.length
    and facts.ids == facts.length and facts.loose == '0' and facts.bytes == bytes and in_bytes(facts.low) == low
    and string.sub(redis.call('LINDEX', log, -1), -4) == mark
  return same and {drops = tonumber(drops), less = tonumber(less)}
end

-- What dropping the nodes behind the first `base` does to the index and the jumps: how many of them are `users`, how
-- many jumps are kept; or nil and the rest of a refusal. In ARGV their ids stand from `gone` on.
local function plan_cut(facts, nodes, jumps, base, drops, gone)
  local cut = {users = 0, jumps = facts.jumps}
  for from = 0, drops - 1, 1000 do
    local entries = redis.call('HMGET', nodes, unpack(ARGV, gone + from, gone + math.min(from + 1000, drops) - 1))
    for offset, entry in ipairs(entries) do
      local place, is_user = place_of(entry or '', facts)
      if place ~= base + from + offset - 1 then return nil, {'unlike'} end
      if is_user then cut.users = cut.users + 1 end
    end
  end
  while drops > 0 and cut.jumps > 0 do
    local from = math.max(cut.jumps - 1000, 0)
    local part = redis.call('LRANGE', jumps, from, cut.jumps - 1)
    cut.jumps = from
    for index = #part, 1, -1 do
      local place = tonumber(string.match(part[index], '^(%d+):'))
      if not place then return nil, {'corrupt', 'jumps', 'an entry is unreadable'} end
      if place < base then cut.jumps = from + index break end
    end
    if cut.jumps > from then break end
  end
  return cut
end

-- How many of the new ids are ids that are only named so far, which lenient checks let a node take; or nil and the
-- rest of a refusal. An id behind `base` is free: this commit drops its node.
local function count_retaken(facts, nodes, base, strict, count, ids)
  local retaken = 0
  for from = 0, count - 1, 1000 do
    local to = math.min(from + 1000, count) - 1
    local taken = redis.call('HMGET', nodes, unpack(ARGV, ids + from, ids + to))
    for offset = 1, to - from + 1 do
      local entry = taken[offset]
      local place = entry and base < facts.length and place_of(entry, facts)
      if entry and not (place and place >= base) then
        if strict or entry ~= '?' then return nil, {'collision', from + offset - 1} end
        retaken = retaken + 1
      end
    end
  end
  return retaken
end

-- The node that an id names to a commit `as` (see plan_links): as locate says it, nil for a node that the commit drops.
local function find(id, facts, nodes, dead, as)
  local place, position = locate(redis.call('HGET', nodes, id), facts, dead)
  if as.drops > 0 and type(place) == 'number' and place >= as.base then return nil end
  return place, position
end

-- The position of the node that a stored `id` names as the parent of the `index`-th new one, -1 where it is only named;
-- or nil and the rest of a refusal. `plan` learns of names and loose links.
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

-- Where the new nodes hang and where the leaf is, or nil and the rest of a refusal. `as` says how: `replaces` the whole
-- graph, `base` the position of the first new node, `strict` checks, `moves` here from another store, `drops` so many
-- nodes. The plan: new `jumps`; `names`, fields and values of ids that are only named; the position of the `leaf`;
-- `loose`, where a link is by id alone.
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
