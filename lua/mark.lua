-- mark: write a head's facts as they are, so that a WAIT behind it waits for all that was written before.
--
-- KEYS   1 head  hash  the field `facts`
--
-- ARGV   1 session  str  session id, echoed
--
-- Reply  marked <session>                      written anew
--        absent <session>                      there is no head; nothing written
--        corrupt <session> <family> <reason>   stored bytes break a law; nothing written
--
-- Order  a commit that is answered from its receipt writes nothing, and WAIT waits for what its own connection wrote.
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
