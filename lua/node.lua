-- node: find live nodes by their ids; reads only.
--
-- KEYS   1 head     hash  facts are read
--        2 log      list  node records
--        3 nodes    hash  node id -> position
--        4 jumps    list  position:parent position, counted
--        5 dead     hash  position -> node id
--        6 state    hash  private components, counted
--
-- ARGV   1 session  str   session id, echoed
--        2 access   str   owner for whom the caller acts; '' for a trusted caller
--        3 steps    int   work after which the script returns; it finds at least one node. A step is about 50 ns: one
--                         chunk of the list on the way to a record, or 256 bytes of a record
--        4 ids      str   node ids, up to the end
--
-- Reply  nodes <session> <position> <record> ...   the position and the record for each id, or for the first of them;
--                                                  -1 and '' for an id that is unknown or tombstoned
--        foreign <session>                         the session is another owner's than `access`
--        corrupt <session> <family> <reason>       stored data violates an invariant
--        evicted <session> <family> <reason>       a key of the session is gone
--
-- Order  the script compares the sizes of the keys first, so that an evicted index is not taken for an unknown id.
-- Cost   one round trip, O(steps).

--@include refuse
--@include numbers
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, access, steps, ids = ARGV[1], ARGV[2], tonumber(ARGV[3]), 4

-- CHECK

local facts, wrong = open_head(head, {log, nodes, jumps, dead, state}, access)
wrong = wrong or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end

-- Returns the position and the record of a live node, -1 and '' if there is none, nil and the rest of a refusal.
local function find(id)
  local entry = facts and redis.call('HGET', nodes, id)
  if not entry or entry == '?' then return -1, '' end
  local position = position_of(entry, facts)
  local buried = position and facts.dead > 0 and redis.call('HGET', dead, position)
  if buried == id then return -1, '' end
  if buried then return nil, {'corrupt', 'dead', 'a tombstone names another node'} end
  local record = position and redis.call('LINDEX', log, position)
  if not record or record == '' then return nil, {'corrupt', 'nodes', 'an entry points at no record'} end
  return position, record
end

local found = {'nodes', session}
for index = ids, #ARGV do
  local position, record = find(ARGV[index])
  if not position then return refuse(session, record) end
  found[#found + 1] = position
  found[#found + 1] = record
  steps = steps - 20 - #record / 256
  if position >= 0 then steps = steps - math.min(position, facts.length - position) / 8 end
  if steps <= 0 then break end
end
return found
