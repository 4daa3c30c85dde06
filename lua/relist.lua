-- relist: write a session's catalogue entry from its head; without a head, and at a refusal, change nothing.
--
-- KEYS   1 head            hash  facts are read
--        2 log             list  node records; must not exist without a head
--        3 nodes           hash  node id -> position; must not exist without a head
--        4 jumps           list  position:parent position; must not exist without a head
--        5 dead            hash  position -> node id; must not exist without a head
--        6 state           hash  private components; must not exist without a head
--        7 sessions        zset  catalogue entry -> last commit (ms)
--        8 expiries        zset  catalogue entry -> time until which it stays (ms)
--        9 owned           zset  as sessions, for the sessions of `owner`; not used without one
--       10 owned_expiries  zset  as expiries, for the sessions of `owner`; not used without one
--
-- ARGV   1 session  str  session id, echoed
--        2 owner    str  owner that the caller expects the session to have, whose catalogue is in KEYS; '' for none
--
-- Reply  relisted <session>                    the entry is written
--        absent <session>                      the session has no head; nothing written
--        owner <session> <owner>               the session has another owner; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  everything that is written comes from the head, so the script is idempotent.
-- Cost   one round trip, about ten commands.

--@include refuse
--@include numbers
--@include head
--@include clock
--@include catalogue

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries, owned, owned_expiries = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local session, owner = ARGV[1], ARGV[2]

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state}, '')
if broken then return refuse(session, broken) end
if not facts then return {'absent', session} end
if owner ~= stored.owner then return {'owner', session, stored.owner} end
local catalogues = catalogues_of(owner, sessions, expiries, owned, owned_expiries)
local wrong = unusable_catalogue(catalogues)
if wrong then return refuse(session, wrong) end
local entry = entry_of(session, stored.parent)

-- WRITE

--@include cataloguing

list_entry(catalogues, entry, facts.committed, facts.hold, true, milliseconds())
return {'relisted', session}
