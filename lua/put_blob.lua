-- put_blob: store bytes that no session holds yet; they wait a while for a commit that names them.
--
-- KEYS   1 blob     hash  c content, n holders
--        2 orphans  zset  blobs nobody holds -> ms
--
-- ARGV   1 ref      str    sha-256 of the logical bytes, hex; echoed
--        2 content  bytes  as stored
--        3 grace    int    ms the blob waits
--
-- Reply  stored <ref>                     the blob is there and stays at least `grace` ms
--        corrupt <ref> <family> <reason>  a key holds another type; nothing written
--
-- Order  a blob that sessions hold is left as it is: its first writer's content stands.
-- Cost   one round trip, up to six commands.

local blob, orphans = KEYS[1], KEYS[2]
local ref, content, grace = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- CHECK

local holders = redis.pcall('HGET', blob, 'n')
if type(holders) == 'table' then return {'corrupt', ref, string.sub(blob, -69), 'holds another type'} end
if type(redis.pcall('ZCARD', orphans)) == 'table' then return {'corrupt', ref, 'orphans', 'holds another type'} end
if holders and holders ~= '0' and redis.call('HEXISTS', blob, 'c') == 1 then return {'stored', ref} end
local clock = redis.call('TIME')
local due = clock[1] * 1000 + math.floor(clock[2] / 1000) + grace

-- WRITE

redis.call('HSET', blob, 'c', content, 'n', holders or 0)
if not holders or holders == '0' then
  redis.call('PEXPIREAT', blob, due)
  redis.call('ZADD', orphans, due, ref)
  if redis.call('PTTL', orphans) < 2 * grace then redis.call('PEXPIRE', orphans, 2 * grace) end
end
return {'stored', ref}
