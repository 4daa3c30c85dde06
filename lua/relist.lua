-- relist: write a session's catalogue entry from its head; without a head, and at a refusal, change nothing.
--
-- KEYS   1 head      hash  facts are read
--        2 log       list  node records; must not exist without a head
--        3 nodes     hash  node id -> position; must not exist without a head
--        4 jumps     list  position:parent position; must not exist without a head
--        5 dead      hash  position -> node id; must not exist without a head
--        6 state     hash  private components; must not exist without a head
--        7 sessions  zset  catalogue entry -> last commit (ms)
--        8 expiries  zset  catalogue entry -> time until which it stays (ms)
--
-- ARGV   1 session  str  session id, echoed
--
-- Reply  relisted <session>                    the entry is written
--        absent <session>                      the session has no head; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  everything that is written comes from the head, so the script is idempotent.
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
