-- meta: write a session's meta record; the head, its revision and its deadline stay as they are.
--
-- KEYS   1 head     hash  the field `meta`
--
-- ARGV   1 session  str    session id, echoed
--        2 mode     str    save: replace what is there; create: only if the session is new
--        3 meta     bytes  the record
--        4 ttl      int    ms until a session that is nothing but meta expires; 0 for never
--
-- Reply  saved <session>                       the record is stored
--        exists <session>                      mode is create and the session has meta; nothing written
--        corrupt <session> <family> <reason>   stored bytes break a law; nothing written
--
-- Order  a session that has a head keeps its deadline: only commits slide it.
-- Cost   one round trip, two or three commands.

--@include refuse

local head = KEYS[1]
local session, mode, meta, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

-- CHECK

local stored = redis.pcall('HMGET', head, 'facts', 'meta')
if stored.err then return refuse(session, unusable('head', stored)) end
if mode == 'create' and stored[2] then return {'exists', session} end

-- WRITE

redis.call('HSET', head, 'meta', meta)
if not stored[1] and ttl > 0 then redis.call('PEXPIRE', head, ttl) end
return {'saved', session}
