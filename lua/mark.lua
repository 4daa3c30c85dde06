-- mark: write a field of a head unchanged, so that a WAIT behind it covers earlier writes; a refusal writes nothing.
--
-- KEYS   1 head  hash  the field `facts`; `deleted` of a session that was deleted; `inputs` of one without a commit
--
-- ARGV   1 session  str  session id, echoed
--
-- Reply  marked <session>                      the field is written
--        absent <session>                      the session has none of these fields; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--
-- Order  a retry of a call that was made writes nothing, and WAIT covers only writes of its own connection.
-- Cost   one round trip, two commands.

--@include refuse

local head = KEYS[1]
local session = ARGV[1]

-- CHECK

local stored = redis.pcall('HMGET', head, 'facts', 'deleted', 'inputs', 'deletions')
if stored.err then return refuse(session, unusable('head', stored)) end
local field = stored[1] and 'facts' or stored[2] and 'deleted' or stored[3] and 'inputs' or stored[4] and 'deletions'
if not field then return {'absent', session} end

-- WRITE

redis.call('HSET', head, field, stored[1] or stored[2] or stored[3] or stored[4])
return {'marked', session}
