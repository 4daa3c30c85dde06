-- vacuum: free the records of given tombstoned nodes; a refusal frees none.
--
-- KEYS   1 head     hash  facts are rewritten
--        2 log      list  freed records become empty strings, so that positions do not change
--        3 nodes    hash  node id -> position
--        4 jumps    list  position:parent position
--        5 dead     hash  position -> node id
--        6 state    hash  private components, counted
--
-- ARGV   1 session  str    session id, echoed
--        2 access   str    owner for whom the caller acts; '' for a trusted caller
--        3 steps    int    work after which the script frees no further node; it handles at least one if any is given.
--                          A step is about 50 ns: one chunk of the list on the way to a record, or 256 bytes of a
--                          record
--        4 epoch    int    epoch of the log in which the caller read the tombstones and their children
--        5 length   int    length of that log
--        6 known    int    number of jumps of that log
--        7 receipt  bytes  the receipt of its last commit
--        8 places   str    position of a tombstone, then that of a live child, '' for none; and so on up to the end
--
-- Reply  vacuumed <session> <count> <left> <done>  the number of freed nodes, of those still to free, and of the given
--                                                  ones that were handled. A given node is handled and not freed if it
--                                                  is no tombstone any more, or has other children than the caller read
--        moved <session>                           the log is not the one that the caller read, or has more than 1,000
--                                                  new jumps, or more commits than there are receipts; nothing written
--        foreign <session>                         the session is another owner's than `access`; nothing written
--        corrupt <session> <family> <reason>       stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>       a key of the session is gone; nothing written
--
-- Order  a freed id may be used again, unless a live node names it as its parent. Then its entry stays, with the value
--        `?`, because a new node with this id would be taken for the old parent.
--        The caller finds the children, because that takes a pass over all jumps. It reads them after the tombstones. A
--        tombstone gets no child, so that all its children are known. Commits may follow until the script runs. The
--        script reads the jumps that they added, in case a failover undid the tombstone and it was made again.
--        Each call leaves a sound session, also if the caller makes no further one.
--        The script frees tombstones that are neighbours, because it reads their records by one walk through the list.
-- Cost   one round trip, O(steps + new jumps).

--@include refuse
--@include numbers
--@include head
--@include int64
--@include receipts

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, access, steps, epoch, length = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local known, receipt, places = tonumber(ARGV[6]), ARGV[7], 8
local PIECE, MAX_NEW_JUMPS = 32, 1000

-- CHECK

local facts, wrong, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
wrong = wrong or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if not facts or facts.dead == 0 then return {'vacuumed', session, 0, 0, 0} end
if not ARGV[places] then return {'vacuumed', session, 0, facts.dead, 0} end
if facts.epoch ~= epoch or facts.length < length or facts.jumps < known or facts.jumps > known + MAX_NEW_JUMPS
  or not place_of_receipt(stored.receipts, receipt) then
  return {'moved', session}
end

-- The positions of nodes that got a child since the caller read the jumps.
local has_new_child, jumped = {}, {}
for _, jump in ipairs(redis.call('LRANGE', jumps, known, -1)) do
  local position, parent = read_jump(jump)
  if not position then return refuse(session, {'corrupt', 'jumps', 'an element is unreadable'}) end
  has_new_child[parent], jumped[position] = true, true
end
if facts.length > length and not jumped[length] then has_new_child[length - 1] = true end

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

local given = {}
for index = places, #ARGV, 2 do given[#given + 1] = ARGV[index] end
local positions, free_ids, kept_ids, done = {}, {}, {}, 0
for index, id in ipairs(redis.call('HMGET', dead, unpack(given))) do
  if done > 0 and steps <= 0 then break end
  done = done + 1
  local position, child = tonumber(given[index]), tonumber(ARGV[places + 2 * index - 1])
  local reserved = child and facts.loose == '0'
  if id and not has_new_child[position] and (not reserved or is_live(child)) then
    local record, named = record_at(position), redis.call('HGET', nodes, id)
    if not record or not named or position_of(named, facts) ~= position then
      return refuse(session, {'corrupt', 'dead', 'an entry points at no node'})
    end
    positions[#positions + 1] = position
    facts.bytes = facts.bytes - #record
    count_walk(position)
    if reserved then
      kept_ids[#kept_ids + 1] = id
      kept_ids[#kept_ids + 1] = '?'
    else
      free_ids[#free_ids + 1] = id
    end
  end
end
facts.dead, facts.ids = facts.dead - #positions, facts.ids - #free_ids
if #positions == 0 then return {'vacuumed', session, 0, facts.dead, done} end

-- WRITE

-- HDEL comes first: a full server accepts it, and after the first write of a script it accepts the others.
redis.call('HDEL', dead, unpack(positions))
redis.call('HSET', head, 'facts', write_facts(facts))
for _, position in ipairs(positions) do redis.call('LSET', log, position, '') end
if #free_ids > 0 then redis.call('HDEL', nodes, unpack(free_ids)) end
if #kept_ids > 0 then redis.call('HSET', nodes, unpack(kept_ids)) end
return {'vacuumed', session, #positions, facts.dead, done}
