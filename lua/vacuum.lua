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
--        4 steps    int   work after which the script frees no further node; it frees at least one if there is any. A
--                         step is about 50 ns: one chunk of the list on the way to a record, or 256 bytes of a record
--
-- Reply  vacuumed <session> <count> <left>     the number of freed nodes, and of those still to free
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  a freed id may be used again, unless a live node names it as its parent. Then its entry stays, with the value
--        `?`, because a new node with this id would be taken for the old parent.
--        The script frees tombstones that are neighbours, because it reads their records by one walk through the list.
-- Cost   one round trip, O(steps + jumps).

--@include refuse
--@include numbers
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, access, limit, steps = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local WINDOWS, WINDOW, PIECE = 64, 128, 32

-- CHECK

local facts, wrong = open_head(head, {log, nodes, jumps, dead, state}, access)
wrong = wrong or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if not facts then return {'vacuumed', session, 0, 0} end
if facts.dead == 0 then return {'vacuumed', session, 0, 0} end

-- Counts the work of one access: the server walks to the position from the nearer end, over at least 8 records a chunk.
local function count_walk(position)
  steps = steps - 20 - math.min(position, facts.length - position) / 8
end

-- Returns the record at a position. If records are short, it reads those behind it in the same walk.
local piece, first = {}, 0
local piece_size = facts.bytes / (facts.live + facts.dead) < 2048 and PIECE or 1
local function record_at(position)
  if not piece[position - first + 1] or position < first then
    count_walk(position)
    piece, first = redis.call('LRANGE', log, position, position + piece_size - 1), position
    for _, record in ipairs(piece) do steps = steps - #record / 256 end
  end
  return piece[position - first + 1]
end

local function is_live(position)
  return position < facts.length and redis.call('HEXISTS', dead, position) == 0 and record_at(position) ~= ''
end

local positions, picked = {}, {}

-- Picks a tombstone to free. Returns whether its entry is sound.
local function pick(position, id)
  local record, named = record_at(position), redis.call('HGET', nodes, id)
  if not record or not named or place_of(named, facts) ~= position then return false end
  positions[#positions + 1] = position
  picked[position] = {id = id, children = {}}
  facts.bytes = facts.bytes - #record
  count_walk(position)
  return true
end

local starts, known = {}, {}
for _, field in ipairs(redis.call('HRANDFIELD', dead, WINDOWS)) do
  local position = is_whole(field) and place_of(field, facts)
  if not position then return refuse(session, {'corrupt', 'dead', 'an entry points at no node'}) end
  local start = position - position % WINDOW
  if not known[start] then starts[#starts + 1] = start end
  known[start] = true
end
for _, start in ipairs(starts) do
  local fields = {}
  for position = start, start + WINDOW - 1 do fields[#fields + 1] = position end
  for index, id in ipairs(redis.call('HMGET', dead, unpack(fields))) do
    if id and #positions < limit and (steps > 0 or #positions == 0) and not pick(start + index - 1, id) then
      return refuse(session, {'corrupt', 'dead', 'an entry points at no node'})
    end
  end
  if #positions >= limit or steps <= 0 then break end
end
local parent_of = {}
for _, jump in ipairs(redis.call('LRANGE', jumps, 0, -1)) do
  local position, parent = read_jump(jump)
  if not position then return refuse(session, {'corrupt', 'jumps', 'an element is unreadable'}) end
  if picked[position - 1] then parent_of[position] = true end
  if picked[parent] then table.insert(picked[parent].children, position) end
end

local function has_live_child(position)
  if not parent_of[position + 1] and is_live(position + 1) then return true end
  for _, child in ipairs(picked[position].children) do
    if is_live(child) then return true end
  end
  return false
end

local free_ids, kept_ids = {}, {}
for _, position in ipairs(positions) do
  local id = picked[position].id
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
