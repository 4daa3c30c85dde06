-- relist: put a session's entry in the catalogue as its head says; a session that is not there is left alone.
--
-- KEYS   1 head      hash  facts are read
--        2 log       list  node records, must be there with the head
--        3 nodes     hash  node id -> position, likewise
--        4 jumps     list  position:parent position, likewise
--        5 dead      hash  position -> node id, likewise
--        6 state     hash  private components, likewise
--        7 sessions  zset  catalogue entry -> last commit (ms)
--        8 expiries  zset  catalogue entry -> until when it stays (ms)
--
-- ARGV   1 session  str  session id, echoed
--
-- Reply  relisted <session>                    the entry stands
--        absent <session>                      there is no head; nothing written
--        corrupt <session> <family> <reason>   stored bytes break a law; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  only what the head says is written, so relisting twice is relisting once.
-- Cost   one round trip, about ten commands.

--@include refuse
--@include head
--@include clock
--@include catalogue

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries = KEYS[7], KEYS[8]
local session = ARGV[1]

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state})
local wrong = broken or unusable_catalogue(sessions, expiries)
if wrong then return refuse(session, wrong) end
if not facts then return {'absent', session} end
local entry = entry_of(session, stored.parent)

-- WRITE

--@include cataloguing

redis.call('ZADD', sessions, facts.committed, entry)
keep_entry(sessions, expiries, entry, facts.hold, milliseconds())
return {'relisted', session}
