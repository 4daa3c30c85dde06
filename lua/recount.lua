-- recount: write the holders of blobs as a client counted them; a blob that changed since then stays as it is.
--
-- KEYS   1 orphans  zset  blobs without a holder -> ms
--        2 blobs    hash  c content, u promised until (ms), number of holders by deadline (ms)
--
-- ARGV   1 scope    str    echoed
--        2 grace    int    ms that a blob outlives its last holder
--        3 values   any    for each blob: the number of all its fields; the number of its fields except c, then these
--                          fields and their values as the client read them; the number of times until which sessions
--                          hold it, then each time (ms; 0: for ever) and the number of these sessions
--
-- Reply  recounted <scope> <index> ...       the blobs (index from 0) that changed since the client read them, are
--                                            gone, or had no `u` and got one; all others are repaired
--        corrupt <scope> <family> <reason>   a key holds another type; nothing written
--
-- Order  the client reads the blobs and every head of the shard at one moment. It counts the heads that hold a blob. A
--        wrong count differs from that number. A commit changes the count of a blob and the holds of its head
--        together, so the difference stays the same. If the fields of a blob are as the client read them, then the
--        difference is as the client counted it, and the script can correct it.
--        Two repairs at once would correct it twice, if a commit restored the count between them. So a repair also
--        raises `u`, and the second one finds another value. A blob that was deleted and stored again has no `u`. So
--        a blob without `u` gets one and is not repaired: the client reads it again, with all heads.
-- Cost   one round trip, O(fields of the blobs).

--@include refuse
--@include numbers
--@include clock
--@include holders

local orphans, blobs = KEYS[1], 2
local scope, grace, values = ARGV[1], tonumber(ARGV[2]), 3
local at = values
local CHUNK = 1000 -- values of one unpack; Lua fails at some 8,000

-- Takes the next number of `values`, then as many pairs. Returns a flat list, and the two halves of the pairs.
local function take_pairs()
  local last = at + 2 * tonumber(ARGV[at])
  local flat, firsts, seconds = {}, {}, {}
  for index = at + 1, last, 2 do
    flat[#flat + 1], flat[#flat + 2] = ARGV[index], ARGV[index + 1]
    firsts[#firsts + 1], seconds[#seconds + 1] = ARGV[index], ARGV[index + 1]
  end
  at = last + 1
  return flat, firsts, seconds
end

-- Whether a blob has these fields with these values, and `size` fields in all.
local function is_unchanged(blob, size, names, contents)
  if redis.call('HLEN', blob) ~= size then return false end
  for from = 1, #names, CHUNK do
    local last = math.min(from + CHUNK - 1, #names)
    for index, value in ipairs(redis.call('HMGET', blob, unpack(names, from, last))) do
      if value ~= contents[from + index - 1] then return false end
    end
  end
  return true
end

-- CHECK

local waiting = redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then return refuse(scope, unusable('orphans', waiting)) end
local now, moved, plan, unmarked = milliseconds(), {}, {}, {}
for index = 0, #KEYS - blobs do
  local blob, size = KEYS[blobs + index], tonumber(ARGV[at])
  at = at + 1
  local _, names, contents = take_pairs()
  local holds, times = take_pairs()
  local stored, failed = is_stored(blob)
  if failed then return refuse(scope, failed) end
  local is_same = stored and is_unchanged(blob, size, names, contents)
  if is_same and redis.call('HEXISTS', blob, 'u') == 0 then
    moved[#moved + 1] = index
    unmarked[#unmarked + 1] = blob
  elseif is_same then
    plan[#plan + 1] = {blob = blob, names = names, holds = holds, times = times}
  else
    moved[#moved + 1] = index
  end
end

-- WRITE

--@include holding

for _, blob in ipairs(unmarked) do redis.call('HSET', blob, 'u', string.format('%.0f', now)) end
local free = {}
for _, each in ipairs(plan) do
  local blob, longest, lasts = each.blob, nil, false
  local promised = tonumber(redis.call('HGET', blob, 'u') or '') or 0
  for from = 1, #each.names, CHUNK do
    redis.call('HDEL', blob, unpack(each.names, from, math.min(from + CHUNK - 1, #each.names)))
  end
  redis.call('HSET', blob, 'u', string.format('%.0f', math.max(now, promised + 1)))
  for from = 1, #each.holds, CHUNK do
    redis.call('HSET', blob, unpack(each.holds, from, math.min(from + CHUNK - 1, #each.holds)))
  end
  for _, hold in ipairs(each.times) do
    lasts = lasts or hold == '0'
    longest = math.max(longest or 0, tonumber(hold))
  end
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
return {'recounted', scope, unpack(moved)}
