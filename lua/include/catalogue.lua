-- The catalogue of a shard: a zset `sessions` of its sessions by their last commit (ms), and a zset `expiries` of those
-- that expire by the time until which they hold their place (hold_of of the deadline). An entry is the session's id; a
-- byte that no UTF-8 has and the parent's id follow where it has a parent.

local function entry_of(session, parent)
  return parent and session .. '\255' .. parent or session
end

-- Nil when both keys can be written to, else the rest of a reply.
local function unusable_catalogue(sessions, expiries)
  local failed = redis.pcall('ZCARD', sessions)
  if type(failed) == 'table' then return unusable('sessions', failed) end
  failed = redis.pcall('ZCARD', expiries)
  if type(failed) == 'table' then return unusable('expiries', failed) end
  return nil
end

-- Whether an entry stands in the catalogue; nil and the rest of a reply where the key holds another type.
local function is_listed(sessions, entry)
  local score = redis.pcall('ZSCORE', sessions, entry)
  if type(score) == 'table' then return nil, unusable('sessions', score) end
  return score ~= false
end
