-- Who holds a blob: for each time until which sessions hold it (ms since 1970; 0: for ever) its hash has a field that
-- counts them. A session holds its blobs until its deadline, rounded up to a multiple of the grace: so the times of
-- many sessions are few, and a session that commits again soon need not move its holds. The hold of a session that
-- expired ends by itself, and a blob expires with the longest of its holds.

local function hold_of(deadline, grace)
  return deadline == 0 and 0 or math.ceil(deadline / grace) * grace
end

-- Whether a blob is stored; nil and the rest of a reply where its key holds another type.
local function is_stored(blob)
  local size = redis.pcall('HSTRLEN', blob, 'c')
  if type(size) == 'table' then return nil, unusable(string.sub(blob, -69), size) end
  return size > 0
end

-- The numbers in these fields of a blob, 0 where there is none; nil and the rest of a reply where one is unreadable.
local function numbers_of(blob, ...)
  local found = redis.pcall('HMGET', blob, ...)
  if found.err then return nil, unusable(string.sub(blob, -69), found) end
  for index = 1, select('#', ...) do
    local number = found[index] or '0'
    if not string.match(number, '^%d+$') or #number > 15 then
      return nil, {'corrupt', string.sub(blob, -69), 'its number of holders is unreadable'}
    end
    found[index] = tonumber(number)
  end
  return found
end

-- Whether any session holds a blob.
local function is_held(blob, now)
  for _, field in ipairs(redis.call('HKEYS', blob)) do
    local hold = string.match(field, '^%d+$') and tonumber(field)
    if hold == 0 or hold and hold > now then return true end
  end
  return false
end
