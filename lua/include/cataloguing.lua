-- Writes to the catalogue (catalogue.lua says what it is); for below WRITE.

-- Drop some entries of sessions that expired, and let both keys die with their last entry. Returns how many went.
local function tidy_catalogue(sessions, expiries, now)
  local ended = redis.call('ZRANGEBYSCORE', expiries, '-inf', now, 'LIMIT', 0, 100)
  if #ended > 0 then
    redis.call('ZREM', sessions, unpack(ended))
    redis.call('ZREM', expiries, unpack(ended))
  end
  -- More sessions than times: the times were lost, so nothing is known of when the list may go.
  local last = redis.call('ZREVRANGE', expiries, 0, 0, 'WITHSCORES')[2]
  if last and last ~= 'inf' and redis.call('ZCARD', expiries) >= redis.call('ZCARD', sessions) then
    redis.call('PEXPIREAT', sessions, last)
    redis.call('PEXPIREAT', expiries, last)
  else
    redis.call('PERSIST', sessions)
    redis.call('PERSIST', expiries)
  end
  return #ended
end

-- Let an entry of `sessions` stay until `hold`.
local function keep_entry(sessions, expiries, entry, hold, now)
  redis.call('ZADD', expiries, hold == '0' and '+inf' or hold, entry)
  tidy_catalogue(sessions, expiries, now)
end

local function drop_entry(sessions, expiries, entry, now)
  redis.call('ZREM', sessions, entry)
  redis.call('ZREM', expiries, entry)
  tidy_catalogue(sessions, expiries, now)
end
