-- gc: delete unheld blobs whose time is over, and catalogue entries of expired sessions; a refusal deletes none.
--
-- KEYS   1 orphans   zset  blobs without a holder -> ms from which they may be deleted
--        2 sessions  zset  catalogue entry -> last commit (ms)
--        3 expiries  zset  catalogue entry -> time until which it stays (ms)
--        4 blobs     hash  the blobs to check, one for each ref
--
-- ARGV   1 scope    str   echoed
--        2 refs     str   refs of those blobs, in the order of KEYS
--
-- Reply  swept <scope> <deleted> <settled> <expired>   numbers of deleted blobs, of refs dropped from the orphans, and
--                                                      of sessions (at most 100) dropped from the catalogue
--        corrupt <scope> <family> <reason>             a key holds another type; nothing deleted
--
-- Order  the script reads the holders itself, so a blob that a commit has acquired meanwhile stays.
-- Cost   one round trip, O(refs).

--@include refuse
--@include numbers
--@include clock
--@include holders
--@include catalogue

local orphans, sessions, expiries, blobs = KEYS[1], KEYS[2], KEYS[3], 4
local scope, refs = ARGV[1], 2

-- CHECK

local waiting = redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then return refuse(scope, unusable('orphans', waiting)) end
local wrong = unusable_catalogue({sessions, expiries})
if wrong then return refuse(scope, wrong) end
local now = milliseconds()
local doomed, settled = {}, {}
for index = 0, #KEYS - blobs do
  local key, ref = KEYS[blobs + index], ARGV[refs + index]
  local stored, failed = is_stored(key)
  if failed then return refuse(scope, failed) end
  local due = redis.call('ZSCORE', orphans, ref)
  if due and (not stored or is_held(key, now)) then
    settled[#settled + 1] = ref
  elseif due and tonumber(due) <= now then
    settled[#settled + 1] = ref
    doomed[#doomed + 1] = key
  end
end

-- WRITE

--@include cataloguing

if #settled > 0 then redis.call('ZREM', orphans, unpack(settled)) end
if #doomed > 0 then redis.call('UNLINK', unpack(doomed)) end
local expired = tidy_catalogue(sessions, expiries, now)
return {'swept', scope, #doomed, #settled, expired}
