-- The holders of a blob. For each time until which sessions hold the blob (ms since 1970; 0: for ever), its hash has a
-- field with the number of these sessions. A session holds its blobs until its deadline, rounded up to a multiple of
-- the grace. So many sessions share few times, and a session that commits again soon need not move its holds. The hold
-- of an expired session ends without a write. A blob expires with the longest of its holds.

-- The name of that field. It is a string, because Redis accepts strings faster than numbers.
local function hold_of(deadline, grace)
  return deadline == 0 and '0' or string.format('%.0f', math.ceil(deadline / grace) * grace)
end

-- Whether a blob is stored; nil and the rest of a reply if its key has another type.
local function is_stored(blob)
  local size = redis.pcall('HSTRLEN', blob, 'c')
  if size == 0 then return false end
  if type(size) == 'table' then return nil, unusable(string.sub(blob, -69), size) end
  return true
end

-- The numbers in these fields of a blob, 0 for a missing field; nil and the rest of a reply if one is unreadable.
local function numbers_of(blob, ...)
  local found = redis.pcall('HMGET', blob, ...)
  if found.err then return nil, unusable(string.sub(blob, -69), found) end
  for index = 1, #found do
    local number = found[index]
    if not number then
      found[index] = 0
    elseif is_whole(number) then
      found[index] = tonumber(number)
    else
      return nil, {'corrupt', string.sub(blob, -69), 'its number of holders is unreadable'}
    end
  end
  return found
end

-- Whether any session holds a blob.
local function is_held(blob, now)
  for _, field in ipairs(redis.call('HKEYS', blob)) do
    local hold = is_whole(field) and tonumber(field)
    if hold == 0 or hold and hold > now then return true end
  end
  return false
end
