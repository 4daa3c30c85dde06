-- vacuum: free the records of some tombstoned nodes; a refusal frees none.
--
-- KEYS   1 head     hash  facts are rewritten
--        2 log      list  freed records become empty strings, so that positions do not change
--        3 nodes    hash  node id -> position
--        4 jumps    list  position:parent position
--        5 dead     hash  position -> node id
--        6 state    hash  private components, counted
--
-- ARGV   1 session  str   session id, echoed
--        2 access   str   owner for whom the caller acts; '' for a trusted caller
--        3 limit    int   maximum number of nodes to free
--
-- Reply  vacuumed <session> <count> <left>     the number of freed nodes, and of those still to free
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  a freed id may be used again, unless a live node names it as its parent. Then its entry stays, with the value
--        `?`, because a new node with this id would be taken for the old parent.
-- Cost   one round trip, O(limit * length of the log) steps over list chunks plus O(jumps).

--@include refuse
--@include numbers
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, access, limit = ARGV[1], ARGV[2], ARGV[3]

-- CHECK

local facts, wrong = open_head(head, {log, nodes, jumps, dead, state}, access)
wrong = wrong or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if not facts then return {'vacuumed', session, 0, 0} end
if facts.dead == 0 then return {'vacuumed', session, 0, 0} end

local parent_of, children_of = {}, {}
for _, jump in ipairs(redis.call('LRANGE', jumps, 0, -1)) do
  local position, parent = read_jump(jump)
  if not position then return refuse(session, {'corrupt', 'jumps', 'an element is unreadable'}) end
  parent_of[position] = true
  children_of[parent] = children_of[parent] or {}
  table.insert(children_of[parent], position)
end

local function is_live(position)
  return position < facts.length and redis.call('HEXISTS', dead, position) == 0
    and redis.call('LINDEX', log, position) ~= ''
end

local function has_live_child(position)
  if not parent_of[position + 1] and is_live(position + 1) then return true end
  for _, child in ipairs(children_of[position] or {}) do
    if is_live(child) then return true end
  end
  return false
end

local picked = redis.call('HRANDFIELD', dead, limit, 'WITHVALUES')
local positions, free_ids, kept_ids = {}, {}, {}
for index = 1, #picked, 2 do
  local position, id = is_whole(picked[index]) and place_of(picked[index], facts), picked[index + 1]
  local record = position and redis.call('LINDEX', log, position)
  local named = redis.call('HGET', nodes, id)
  if not record or not named or place_of(named, facts) ~= position then
    return refuse(session, {'corrupt', 'dead', 'an entry points at no node'})
  end
  positions[#positions + 1] = position
  facts.bytes = facts.bytes - #record
  if facts.loose == '0' and has_live_child(position) then
    kept_ids[#kept_ids + 1] = id
    kept_ids[#kept_ids + 1] = '?'
  else
    free_ids[#free_ids + 1] = id
  end
end
facts.dead, facts.ids = facts.dead - #positions, facts.ids - #free_ids

-- WRITE

-- HDEL comes first: a full server accepts it, and after the first write of a script it accepts the others.
redis.call('HDEL', dead, unpack(positions))
redis.call('HSET', head, 'facts', write_facts(facts))
for _, position in ipairs(positions) do redis.call('LSET', log, position, '') end
if #free_ids > 0 then redis.call('HDEL', nodes, unpack(free_ids)) end
if #kept_ids > 0 then redis.call('HSET', nodes, unpack(kept_ids)) end
return {'vacuumed', session, #positions, facts.dead}
