-- Writes to the catalogue (see catalogue.lua); to be included below WRITE.

-- Drop at most 100 entries of expired sessions, and let both keys expire with their last entry. Returns the number of
-- dropped entries.
local function tidy_catalogue(sessions, expiries, now)
  local ended = redis.call('ZRANGEBYSCORE', expiries, '-inf', now, 'LIMIT', 0, 100)
  if #ended > 0 then
    redis.call('ZREM', sessions, unpack(ended))
    redis.call('ZREM', expiries, unpack(ended))
  end
  -- With more sessions than times, some sessions never expire, or the times were lost. Then the list does not expire.
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

-- Keep an entry of `sessions` until `hold`; `0`: for ever. If it is the only entry, other times in `expiries` belong to
-- a list that was lost. They are dropped first, because with them the new list would expire.
local function keep_entry(sessions, expiries, entry, hold, now)
  if redis.call('ZCARD', sessions) == 1 then redis.call('UNLINK', expiries) end
  if hold == '0' then redis.call('ZREM', expiries, entry) else redis.call('ZADD', expiries, hold, entry) end
  tidy_catalogue(sessions, expiries, now)
end

-- Write an entry with the time of the last commit to each of these catalogues (see catalogues_of). With `moves`, or if
-- the entry is new, also keep it until `hold`.
local function list_entry(catalogues, entry, committed, hold, moves, now)
  for at = 1, #catalogues, 2 do
    local added = redis.call('ZADD', catalogues[at], committed, entry)
    if moves or added == 1 then keep_entry(catalogues[at], catalogues[at + 1], entry, hold, now) end
  end
end

local function drop_entry(catalogues, entry, now)
  for at = 1, #catalogues, 2 do
    redis.call('ZREM', catalogues[at], entry)
    redis.call('ZREM', catalogues[at + 1], entry)
    tidy_catalogue(catalogues[at], catalogues[at + 1], now)
  end
end
