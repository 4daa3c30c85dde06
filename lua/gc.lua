-- gc: delete blobs that nobody holds and whose time has come.
--
-- KEYS   1 orphans  zset  blobs nobody holds -> ms from which they may go
--        2 blobs    hash  the blobs to look at, one for each ref
--
-- ARGV   1 scope    str   echoed
--        2 refs     str   refs of those blobs, in the order of KEYS
--
-- Reply  swept <scope> <deleted> <settled>        so many blobs are deleted, so many entries left the list
--        corrupt <scope> <family> <reason>        a key holds another type; nothing deleted
--
-- Order  holders are counted here and now, so a blob that a commit took up in between stays.
-- Cost   one round trip, O(refs).

--@include refuse

local orphans, blobs = KEYS[1], 2
local scope, refs = ARGV[1], 2

-- CHECK

local waiting = redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then return refuse(scope, unusable('orphans', waiting)) end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local doomed, settled = {}, {}
for index = 0, #KEYS - blobs do
  local key, ref = KEYS[blobs + index], ARGV[refs + index]
  local holders = redis.pcall('HGET', key, 'n')
  if type(holders) == 'table' then return refuse(scope, unusable(string.sub(key, -69), holders)) end
  local due = redis.call('ZSCORE', orphans, ref)
  if due and holders ~= '0' then
    settled[#settled + 1] = ref
  elseif due and tonumber(due) <= now then
    settled[#settled + 1] = ref
    doomed[#doomed + 1] = key
  end
end

-- WRITE

if #settled > 0 then redis.call('ZREM', orphans, unpack(settled)) end
if #doomed > 0 then redis.call('UNLINK', unpack(doomed)) end
return {'swept', scope, #doomed, #settled}
