-- The graph of a session to which a commit adds nodes. The position of a node is its index in the log, from 0. `jumps`
-- has the parent of each node whose parent is not the node before it.

-- Decodes an entry of the nodes hash. Returns the position of a live node; 'named' for an id that occurs only as a
-- parent; 'dead' and the position for a tombstone; 'broken' for an entry outside the log; nil without an entry.
local function locate(entry, facts, dead)
  if not entry then return nil end
  if entry == '?' then return 'named' end
  local place = position_of(entry, facts)
  if not place then return 'broken' end
  if facts.dead > 0 and redis.call('HEXISTS', dead, place) == 1 then return 'dead', place end
  return place
end

local function broken_index()
  return {'corrupt', 'nodes', 'an entry points outside the log'}
end

-- Reads the entries of the nodes hash that an append needs, in one command: those of the new ids, then that of the
-- first node's parent if its link is an id, then that of the leaf if it is a stored node. The second value is the
-- leaf's entry.
local function entries_for_append(nodes, count, ids, leaf)
  local ask, asks_leaf = {unpack(ARGV, ids, ids + count - 1)}, string.byte(leaf) == 61
  if count > 0 and string.byte(ARGV[ids + count]) == 61 then ask[count + 1] = string.sub(ARGV[ids + count], 2) end
  if asks_leaf then ask[#ask + 1] = string.sub(leaf, 2) end
  if #ask == 0 then return {} end
  local entries = redis.call('HMGET', nodes, unpack(ask))
  return entries, asks_leaf and entries[#ask]
end

-- Returns the position of the leaf after a strict append of `count` nodes, -1 for none; or nil and the rest of a
-- refusal.
local function place_leaf(facts, dead, count, leaf, entry)
  local mark = string.byte(leaf)
  if mark == 64 then return facts.length + string.sub(leaf, 2) end -- @k
  if mark == 126 then return facts.leaf or -1 end -- ~
  if mark ~= 61 then
    if count + facts.live > 0 then return nil, {'leaf'} end
    return -1
  end
  local place = locate(entry, facts, dead)
  if place == 'broken' then return nil, broken_index() end
  if type(place) ~= 'number' then return nil, {'leaf'} end
  return place
end

-- Plans a strict append of `count` nodes. Returns the plan, or nil and the rest of a refusal. ARGV from `ids` on has
-- the ids of the nodes, then their links, then their records. The plan:
--   jumps    the new jumps
--   places   fields and values for the nodes hash, a flat list
--   names    the number of these fields whose id occurs only as a parent
--   leaf     the position of the leaf
--   bytes    the sum of the sizes of the records
--   users    the number of the new nodes that are a user's message
--   first    the position of the session's first user's message
local function plan_append(facts, nodes, dead, count, ids, users, leaf)
  local links, records, base = ids + count, ids + 2 * count, facts.length
  local plan = {jumps = {}, places = {}, names = 0, bytes = 0, users = 0, first = facts.first}
  local entries, leaf_entry = entries_for_append(nodes, count, ids, leaf)
  for index = 1, count do
    if entries[index] then return nil, {'collision', index - 1} end
  end
  local was_empty = facts.live == 0 and facts.dead == 0
  for index = 0, count - 1 do
    local link, at, above = ARGV[links + index], base + index
    local mark = string.byte(link)
    if not mark then
      above = at - 1
    elseif mark == 64 then -- @k
      above = base + string.sub(link, 2)
    elseif mark == 45 then -- -
      above = -1
    else
      above = locate(index == 0 and entries[count + 1] or redis.call('HGET', nodes, string.sub(link, 2)), facts, dead)
      if above == 'broken' then return nil, broken_index() end
      if type(above) ~= 'number' then
        if not was_empty or index > 0 then return nil, {'parent', index} end
        if not above then plan.places[1], plan.places[2], plan.names = string.sub(link, 2), '?', 1 end
        above = -1
      end
    end
    if above ~= at - 1 then plan.jumps[#plan.jumps + 1] = at .. ':' .. above end
    local is_user = string.byte(users, index + 1) == 117
    if is_user then
      plan.users = plan.users + 1
      if plan.first == -1 then plan.first = at end
    end
    plan.places[#plan.places + 1] = ARGV[ids + index]
    plan.places[#plan.places + 1] = is_user and at .. 'u' or at
    plan.bytes = plan.bytes + #ARGV[records + index]
  end
  local place, refusal = place_leaf(facts, dead, count, leaf, leaf_entry)
  plan.leaf = place
  return place and plan, refusal
end
