-- put_blob: store bytes that no session holds yet; they wait a while for a commit that names them.
--
-- KEYS   1 blob     hash  c content, n holders, u until when an upload is promised to stay
--        2 orphans  zset  blobs nobody holds -> ms
--
-- ARGV   1 ref      str    sha-256 of the logical bytes, hex; echoed
--        2 content  bytes  as stored
--        3 grace    int    ms the blob waits
--
-- Reply  stored <ref>                     the blob is there and stays at least `grace` ms
--        corrupt <ref> <family> <reason>  a key holds another type; nothing written
--
-- Order  a blob that sessions hold keeps its content, its first writer's; only the promise is noted, and kept when
--        the last of them lets go. A shorter promise never cuts a longer one.
-- Cost   one round trip, up to six commands.

--@include refuse

local blob, orphans = KEYS[1], KEYS[2]
local ref, content, grace = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- CHECK

local stored = redis.pcall('HMGET', blob, 'n', 'u')
if stored.err then return refuse(ref, unusable(string.sub(blob, -69), stored)) end
local waiting = redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then return refuse(ref, unusable('orphans', waiting)) end
local clock = redis.call('TIME')
local due = clock[1] * 1000 + math.floor(clock[2] / 1000) + grace
due = math.max(due, tonumber(stored[2] or '') or 0)
local is_held = stored[1] and stored[1] ~= '0' and redis.call('HEXISTS', blob, 'c') == 1

-- WRITE

if is_held then
  redis.call('HSET', blob, 'u', due)
else
  redis.call('HSET', blob, 'c', content, 'n', 0, 'u', due)
  redis.call('PEXPIREAT', blob, due)
  redis.call('ZADD', orphans, due, ref)
  if redis.call('PTTL', orphans) < 2 * grace then redis.call('PEXPIRE', orphans, 2 * grace) end
end
return {'stored', ref}
