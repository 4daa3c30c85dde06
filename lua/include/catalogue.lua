-- The catalogue of a shard. The zset `sessions` has an entry for each session, by the time of its last commit (ms). The
-- zset `expiries` has the entries of sessions that expire, by the time until which they stay (hold_of of the deadline).
-- An entry is the session's id. For a session with a parent, the byte 0xff, which UTF-8 never has, and the parent's id
-- follow. The sessions of one owner in the shard have a catalogue of their own, with the same entries and times.

local function entry_of(session, parent)
  return parent and session .. '\255' .. parent or session
end

-- The catalogues that list a session of this owner ('' for none): a flat list of their keys, two for each.
local function catalogues_of(owner, sessions, expiries, owned, owned_expiries)
  if owner == '' then return {sessions, expiries} end
  return {sessions, expiries, owned, owned_expiries}
end

-- The family of a catalogue's key: what follows the prefix.
local function catalogue_family(key)
  return string.match(key, '}:(.*)$') or key
end

-- Nil if all keys of these catalogues can be written, else the rest of a reply.
local function unusable_catalogue(catalogues)
  for _, key in ipairs(catalogues) do
    local failed = redis.pcall('ZCARD', key)
    if type(failed) == 'table' then return unusable(catalogue_family(key), failed) end
  end
  return nil
end

-- Whether all of these catalogues have an entry; nil and the rest of a reply if a key has another type.
local function is_listed(catalogues, entry)
  for at = 1, #catalogues, 2 do
    local score = redis.pcall('ZSCORE', catalogues[at], entry)
    if type(score) == 'table' then return nil, unusable(catalogue_family(catalogues[at]), score) end
    if not score then return false end
  end
  return true
end
