-- Writes to a blob's holders (see holders.lua); to be included below WRITE.

-- Drop the holds that ended, and return the time until which the blob is held: 0 for ever, nil if no session holds it.
local function held_until(blob, now)
  local latest, ended = nil, {}
  for _, field in ipairs(redis.call('HKEYS', blob)) do
    local hold = is_whole(field) and tonumber(field)
    if hold == 0 then
      latest = 0
    elseif hold and hold <= now then
      ended[#ended + 1] = field
    elseif hold and latest ~= 0 then
      latest = math.max(latest or 0, hold)
    end
  end
  for from = 1, #ended, 1000 do redis.call('HDEL', blob, unpack(ended, from, math.min(from + 999, #ended))) end
  return latest
end

-- Add a holder until `hold` to the `count` that hold the blob until then. After each 128 fields, drop ended holds.
local function add_holder(blob, hold, count, now)
  redis.call('HSET', blob, hold, count + 1)
  if hold == '0' then
    redis.call('PERSIST', blob)
  else
    -- TIME and PTTL may differ by the time that the script has run so far.
    local left = redis.call('PTTL', blob)
    if left ~= -1 and now + left < hold + 100 then redis.call('PEXPIREAT', blob, math.max(hold, now + left)) end
  end
  if count == 0 and redis.call('HLEN', blob) % 128 == 0 then held_until(blob, now) end
end

-- Drop one of the `count` holders until `hold`. A blob without holders stays for the grace, or until the time promised
-- to an upload. It is added to `free`, with the time from which gc may delete it.
local function drop_holder(blob, hold, count, promised, grace, now, free)
  if count > 1 then
    redis.call('HSET', blob, hold, count - 1)
    return
  end
  redis.call('HDEL', blob, hold)
  -- Most blobs have one holder, so that only `c` is left.
  local latest = redis.call('HLEN', blob) > 1 and held_until(blob, now) or nil
  if latest ~= 0 then redis.call('PEXPIREAT', blob, math.max(latest or now + grace, promised)) end
  if not latest then
    free[#free + 1] = math.max(now, promised)
    free[#free + 1] = string.sub(blob, -64)
  end
end

-- Add free blobs to the orphans, of which `waiting` are listed. The list need not outlive its blobs, which expire
-- anyway. So after each 32 additions, the list gets an expiry, and old entries are dropped.
local function list_orphans(orphans, free, waiting, grace, now)
  if #free == 0 then return end
  redis.call('ZADD', orphans, unpack(free))
  if waiting > 0 and waiting % 32 + #free / 2 < 32 then return end
  local latest = now
  for index = 1, #free, 2 do latest = math.max(latest, free[index]) end
  if now + redis.call('PTTL', orphans) < latest + grace then
    redis.call('PEXPIREAT', orphans, latest + 2 * grace)
    redis.call('ZREMRANGEBYSCORE', orphans, '-inf', now - 2 * grace)
  end
end

-- Write the plan of plan_holds (components.lua).
local function move_holds(plan, blobs, acquired, kept, contents, had, hold, grace, now, orphans)
  local free, held = {}, acquired + kept
  for index = 0, #KEYS - blobs do
    local key, counts = KEYS[blobs + index], plan[index]
    if index >= held then
      if counts[1] > 0 then drop_holder(key, had, counts[1], counts[2], grace, now, free) end
    elseif not counts then
      redis.call('HSET', key, 'c', ARGV[contents + index], hold, '1')
      if hold ~= '0' then redis.call('PEXPIREAT', key, hold) end
    elseif index < acquired then
      add_holder(key, hold, counts[1], now)
      redis.call('ZREM', orphans, string.sub(key, -64))
    elseif counts ~= 'kept' then
      add_holder(key, hold, counts[3], now)
      if counts[1] > 0 then drop_holder(key, had, counts[1], counts[2], grace, now, free) end
    end
  end
  list_orphans(orphans, free, plan.waiting or 0, grace, now)
end
