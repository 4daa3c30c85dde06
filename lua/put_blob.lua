-- put_blob: store bytes that no session holds yet, for a later commit that names them; a refusal stores nothing.
--
-- KEYS   1 blob     hash  c content, u time until which an upload stays, holders until each time
--        2 orphans  zset  blobs without a holder -> ms
--
-- ARGV   1 ref      str    sha-256 of the logical bytes, hex; echoed
--        2 content  bytes  as stored
--        3 grace    int    ms for which the blob is kept without a holder
--
-- Reply  stored <ref>                     the blob is stored and stays at least `grace` ms
--        corrupt <ref> <family> <reason>  a key holds another type; nothing written
--
-- Order  a blob that sessions hold keeps the content of its first writer. Only `u` is written, and it applies when the
--        last holder releases the blob. An earlier time never replaces a later one.
-- Cost   one round trip, up to six commands.

--@include refuse
--@include numbers
--@include clock
--@include holders

local blob, orphans = KEYS[1], KEYS[2]
local ref, content, grace = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- CHECK

local stored, failed = is_stored(blob)
if failed then return refuse(ref, failed) end
local numbers, unreadable = numbers_of(blob, 'u')
if not numbers then return refuse(ref, unreadable) end
local waiting = redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then return refuse(ref, unusable('orphans', waiting)) end
local now = milliseconds()
local due = math.max(now + grace, numbers[1])
local held = stored and is_held(blob, now)

-- WRITE

if held then
  redis.call('HSET', blob, 'u', due)
  local left = redis.call('PTTL', blob)
  if left ~= -1 and now + left < due then redis.call('PEXPIREAT', blob, due) end
else
  redis.call('HSET', blob, 'c', content, 'u', due)
  redis.call('PEXPIREAT', blob, due)
  redis.call('ZADD', orphans, due, ref)
  if now + redis.call('PTTL', orphans) < due + grace then redis.call('PEXPIREAT', orphans, due + grace) end
end
return {'stored', ref}
