-- The catalogue of a shard. The zset `sessions` has an entry for each session, by the time of its last commit (ms). The
-- zset `expiries` has the entries of sessions that expire, by the time until which they stay (hold_of of the deadline).
-- An entry is the session's id. For a session with a parent, the byte 0xff, which UTF-8 never has, and the parent's id
-- follow.

local function entry_of(session, parent)
  return parent and session .. '\255' .. parent or session
end

-- Nil if both keys can be written, else the rest of a reply.
local function unusable_catalogue(sessions, expiries)
  local failed = redis.pcall('ZCARD', sessions)
  if type(failed) == 'table' then return unusable('sessions', failed) end
  failed = redis.pcall('ZCARD', expiries)
  if type(failed) == 'table' then return unusable('expiries', failed) end
  return nil
end

-- Whether the catalogue has an entry; nil and the rest of a reply if the key has another type.
local function is_listed(sessions, entry)
  local score = redis.pcall('ZSCORE', sessions, entry)
  if type(score) == 'table' then return nil, unusable('sessions', score) end
  return score ~= false
end
