-- node: find one live node by its id; reads only.
--
-- KEYS   1 head     hash  facts are read
--        2 log      list  node records
--        3 nodes    hash  node id -> position
--        4 jumps    list  position:parent position, counted
--        5 dead     hash  position -> node id
--        6 state    hash  private components, counted
--
-- ARGV   1 session  str   session id, echoed
--        2 id       str   node id
--
-- Reply  node <session> <record> <position>    the node's record
--        none <session>                        unknown or tombstoned
--        corrupt <session> <family> <reason>   stored data violates an invariant
--        evicted <session> <family> <reason>   a key of the session is gone
--
-- Order  the script compares the sizes of the keys first, so that an evicted index is not taken for an unknown id.
-- Cost   one round trip, O(length of the log) steps over list chunks.

--@include refuse
--@include head

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, id = ARGV[1], ARGV[2]

-- CHECK

local facts, wrong = open_head(head, {log, nodes, jumps, dead, state})
wrong = wrong or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if not facts then return {'none', session} end

local entry = redis.call('HGET', nodes, id)
if not entry or entry == '?' then return {'none', session} end
local position = place_of(entry, facts)
local buried = position and facts.dead > 0 and redis.call('HGET', dead, position)
if buried == id then return {'none', session} end
if buried then return refuse(session, {'corrupt', 'dead', 'a tombstone names another node'}) end
local record = position and redis.call('LINDEX', log, position)
if not record or record == '' then return refuse(session, {'corrupt', 'nodes', 'an entry points at no record'}) end

return {'node', session, record, position}
