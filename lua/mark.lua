-- mark: write a head's facts unchanged, so that a WAIT behind it covers all earlier writes; a refusal writes nothing.
--
-- KEYS   1 head  hash  the field `facts`
--
-- ARGV   1 session  str  session id, echoed
--
-- Reply  marked <session>                      the facts are written
--        absent <session>                      the session has no head; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--
-- Order  a retry that a receipt answers writes nothing, and WAIT covers only writes of its own connection.
-- Cost   one round trip, two commands.

--@include refuse

local head = KEYS[1]
local session = ARGV[1]

-- CHECK

local stored = redis.pcall('HMGET', head, 'facts')
if stored.err then return refuse(session, unusable('head', stored)) end
if not stored[1] then return {'absent', session} end

-- WRITE

redis.call('HSET', head, 'facts', stored[1])
return {'marked', session}
