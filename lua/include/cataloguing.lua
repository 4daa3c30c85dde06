-- Writes to the catalogue (catalogue.lua says what it is); for below WRITE.

-- Drop some entries of sessions that expired, and let both keys die with their last entry. Returns how many went.
local function tidy_catalogue(sessions, expiries, now)
  local ended = redis.call('ZRANGEBYSCORE', expiries, '-inf', now, 'LIMIT', 0, 100)
  if #ended > 0 then
    redis.call('ZREM', sessions, unpack(ended))
    redis.call('ZREM', expiries, unpack(ended))
  end
  -- More sessions than times: some never expire, or the times were lost. Then the list stays.
  local last = redis.call('ZREVRANGE', expiries, 0, 0, 'WITHSCORES')[2]
  if last and redis.call('ZCARD', expiries) >= redis.call('ZCARD', sessions) then
    redis.call('PEXPIREAT', sessions, last)
    redis.call('PEXPIREAT', expiries, last)
  else
    redis.call('PERSIST', sessions)
    redis.call('PERSIST', expiries)
  end
  return #ended
end

-- Let an entry of `sessions` stay until `hold`; `0`: for ever. An entry that is alone there has no other's time beside
-- it: those are of a list that was lost, and counted they would let the new list expire.
local function keep_entry(sessions, expiries, entry, hold, now)
  if redis.call('ZCARD', sessions) == 1 then redis.call('UNLINK', expiries) end
  if hold == '0' then redis.call('ZREM', expiries, entry) else redis.call('ZADD', expiries, hold, entry) end
  tidy_catalogue(sessions, expiries, now)
end

local function drop_entry(sessions, expiries, entry, now)
  redis.call('ZREM', sessions, entry)
  redis.call('ZREM', expiries, entry)
  tidy_catalogue(sessions, expiries, now)
end
