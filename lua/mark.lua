-- mark: write a field of a head unchanged, so that a WAIT behind it covers earlier writes; a refusal writes nothing.
--
-- KEYS   1 head  hash  the field `facts`, or `deleted` of a session that was deleted
--
-- ARGV   1 session  str  session id, echoed
--
-- Reply  marked <session>                      the field is written
--        absent <session>                      the session has neither field; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--
-- Order  a retry of a call that was made writes nothing, and WAIT covers only writes of its own connection.
-- Cost   one round trip, two commands.

--@include refuse

local head = KEYS[1]
local session = ARGV[1]

-- CHECK

local stored = redis.pcall('HMGET', head, 'facts', 'deleted')
if stored.err then return refuse(session, unusable('head', stored)) end
if not (stored[1] or stored[2]) then return {'absent', session} end

-- WRITE

redis.call('HSET', head, stored[1] and 'facts' or 'deleted', stored[1] or stored[2])
return {'marked', session}
