-- recount: compare the holders that blobs count with the heads of their shard; repair them if asked to, else only read.
--
-- KEYS   1 sessions  zset  catalogue entry -> last commit (ms)
--        2 orphans   zset  blobs without a holder -> ms
--        3 blobs     hash  the blobs to check; then the head of every session of the shard
--
-- ARGV   1 scope    str    echoed
--        2 mode     str    check or repair
--        3 grace    int    ms a blob outlives its last holder
--        4 count    int    number of blobs
--        5 values   bytes  the refs of the blobs, 32 bytes each, then for every head its catalogue entry, '' for a
--                          session that is not listed
--
-- Reply  recounted <scope> <repaired> <index> <stored> <counted> ...
--                                           the blobs (index from 0) whose holders differ from the heads, with both
--                                           counts as `time*holders` words; stored is `gone` for a blob that is not
--                                           stored, `lasts` for an unheld one that does not expire; repaired is 1 if
--                                           all blobs except the gone ones were repaired
--        moved <scope>                      the shard has other sessions than the given ones; nothing written
--        corrupt <scope> <family> <reason>  a key holds another type; nothing written
--
-- Order  the script reads every head of the shard and the blobs in one step, so it cannot miscount commits in flight.
--        It repairs nothing if it cannot read a head, because the blobs of that head are unknown, or if the catalogue
--        lacks a session, because it may lack others.
--        The work is not divided. A hold that a commit moves between two steps would be counted twice or not at all,
--        and a repair by such a count would delete a blob in use. Steps would need a journal of the holds that move
--        meanwhile: one more key in every script that writes a hold.
-- Cost   one round trip, O(sessions of the shard + blobs); it blocks the server for 5 to 6 us a session.

--@include refuse
--@include numbers
--@include clock
--@include holders

local sessions, orphans, blobs = KEYS[1], KEYS[2], 3
local scope, mode, grace, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local values, CHUNK = 5, 1000
-- Matches facts (see head.lua) and captures the deadline and the hold.
local TIMES = '^%d+ %d+ %d+ %d+ %d+ %d+ %d+ %d+ %-?%d+ %d+ [01] (%d+) (%d+) %d+ %d+ %-?%d+ %d+ %d+$'

-- CHECK

local heads = blobs + count
local entries = values + count
local listed = redis.pcall('ZCARD', sessions)
if type(listed) == 'table' then return refuse(scope, unusable('sessions', listed)) end
local waiting = redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then return refuse(scope, unusable('orphans', waiting)) end
local unlisted = 0
for index = entries, #ARGV do
  if ARGV[index] == '' then unlisted = unlisted + 1 end
end
if listed ~= #KEYS - heads + 1 - unlisted then return {'moved', scope} end

-- A session that was started again with another parent has two entries for a while. It is counted once.
local now, counted, repairs, checked = milliseconds(), {}, mode == 'repair' and 1 or 0, {}
for index = 0, count - 1 do counted[ARGV[values + index]] = {} end
for from = entries, #ARGV, CHUNK do
  local scores = redis.call('ZMSCORE', sessions, unpack(ARGV, from, math.min(from + CHUNK - 1, #ARGV)))
  for index, score in ipairs(scores) do
    if not score and ARGV[from + index - 1] ~= '' then return {'moved', scope} end
  end
end
for index = 0, #KEYS - heads do
  local entry = ARGV[entries + index]
  local head = KEYS[heads + index]
  local stored = checked[head] and {} or redis.pcall('HMGET', head, 'facts', 'refs')
  checked[head] = true
  if stored.err then unusable('head', stored) end -- raises for a missing right; ignores a key of another type
  if not stored[1] and (stored.err or stored[2]) then repairs = 0 end
  if stored[1] and (entry == '' or not stored[2] or #stored[2] % 99 ~= 0) then repairs = 0 end
  local deadline, hold = string.match(stored[1] or '', TIMES)
  if stored[1] and not hold then repairs = 0 end
  if hold and (deadline == '0' or tonumber(hold) > now) then
    local refs, seen = stored[2] or '', {}
    for at = 1, #refs, 33 do
      local ref = string.byte(refs, at) == 104 and string.sub(refs, at + 1, at + 32)
      if ref and counted[ref] and not seen[ref] then
        counted[ref][hold] = (counted[ref][hold] or 0) + 1
        seen[ref] = true
      end
    end
  end
end

local function words(counts)
  local listing = {}
  for hold, holders in pairs(counts) do listing[#listing + 1] = hold .. '*' .. holders end
  table.sort(listing)
  return table.concat(listing, ' ')
end

local reply, wrong = {'recounted', scope, repairs}, {}
for index = 0, count - 1 do
  local blob, found = KEYS[blobs + index], {}
  local stored, failed = is_stored(blob)
  if failed then return refuse(scope, failed) end
  local counts = counted[ARGV[values + index]]
  for _, field in ipairs(redis.call('HKEYS', blob)) do
    local hold = is_whole(field) and tonumber(field)
    if hold == 0 or hold and hold > now then
      local holders = redis.call('HGET', blob, field)
      found[field] = holders
      -- An expired session's holds last for less than the grace (at least a minute). They cannot be counted any more,
      -- so counts of such times are accepted as they are.
      if hold > 0 and hold <= now + math.max(grace, 60000) and (tonumber(holders) or 0) > (counts[field] or 0) then
        counts[field] = holders
      end
    end
  end
  local said, known = words(found), words(counts)
  if not stored and known ~= '' then said = 'gone' end
  local left = stored and redis.call('PTTL', blob)
  if left == -1 and said == '' and known == '' then said = 'lasts' end
  if stored and known ~= '' and left ~= -1 then
    for hold in pairs(counts) do
      if hold == '0' or now + left < tonumber(hold) - 1000 then said = said .. ' expiring early' break end
    end
  end
  if said ~= known then
    reply[#reply + 1] = index
    reply[#reply + 1] = said
    reply[#reply + 1] = known
    if stored and repairs == 1 then wrong[index] = found end
  end
end

-- WRITE

--@include holding

local free = {}
for index, found in pairs(wrong) do
  local blob, longest, lasts = KEYS[blobs + index], nil, false
  for field in pairs(found) do redis.call('HDEL', blob, field) end
  for hold, holders in pairs(counted[ARGV[values + index]]) do
    redis.call('HSET', blob, hold, holders)
    lasts = lasts or hold == '0'
    longest = math.max(longest or 0, tonumber(hold))
  end
  local promised = tonumber(redis.call('HGET', blob, 'u') or '') or 0
  if lasts then
    redis.call('PERSIST', blob)
  else
    redis.call('PEXPIREAT', blob, math.max(longest or now + grace, promised))
    if not longest then
      free[#free + 1] = math.max(now, promised)
      free[#free + 1] = string.sub(blob, -64)
    end
  end
end
list_orphans(orphans, free, waiting, grace, now)
return reply
