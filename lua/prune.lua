-- prune: drop entries of sessions without keys, and former entries of sessions that were started again.
--
-- KEYS   1 sessions  zset  entry of the shard's or of an owner's catalogue -> last commit (ms)
--        2 expiries  zset  the same entries -> time until which they stay (ms)
--        3 keys      any   the six keys of each session to check
--
-- ARGV   1 scope    str    echoed
--        2 owner    str    owner whose catalogue it is; '' for the shard's
--        3 entries  bytes  the catalogue entries of these sessions, in the order of KEYS
--
-- Reply  pruned <scope> <count>                  the number of dropped entries
--        corrupt <scope> <family> <reason>       a key holds another type; nothing written
--
-- Order  the script checks the keys itself, so the entry of a session that has started again stays. The entry of a
--        session of which some keys are left stays, too.
-- Cost   one round trip, O(entries).

--@include refuse
--@include clock
--@include catalogue

local sessions, expiries, keys = KEYS[1], KEYS[2], 3
local scope, owner, entries = ARGV[1], ARGV[2], 3

-- CHECK

local wrong = unusable_catalogue({sessions, expiries})
if wrong then return refuse(scope, wrong) end
local now, gone = milliseconds(), {}
for index = entries, #ARGV do
  local at = keys + 6 * (index - entries)
  local entry, session = ARGV[index], string.match(ARGV[index], '^[^\255]*')
  local stored = redis.pcall('HMGET', KEYS[at], 'facts', 'meta', 'parent', 'owner', 'inputs')
  local is_former = (stored[1] or stored[2] or stored[5])
    and (entry ~= entry_of(session, stored[3]) or owner ~= '' and owner ~= stored[4])
  if is_former or redis.call('EXISTS', unpack(KEYS, at, at + 5)) == 0 then gone[#gone + 1] = entry end
end

-- WRITE

--@include cataloguing

for _, entry in ipairs(gone) do
  redis.call('ZREM', sessions, entry)
  redis.call('ZREM', expiries, entry)
end
tidy_catalogue(sessions, expiries, now)
return {'pruned', scope, #gone}
