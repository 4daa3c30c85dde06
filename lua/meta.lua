-- meta: write a session's meta record; head, revision and deadline do not change; a refusal writes nothing.
--
-- KEYS   1 head      hash  the fields `meta`, `parent` and `ttl`
--        2 log       list  node records, counted
--        3 nodes     hash  node id -> position, counted
--        4 jumps     list  position:parent position, counted
--        5 dead      hash  position -> node id, counted
--        6 state     hash  private components, counted
--        7 sessions  zset  catalogue entry -> last commit (ms)
--        8 expiries  zset  catalogue entry -> time until which it stays (ms)
--
-- ARGV   1 session      str    session id, echoed
--        2 mode         str    save: replace the record; create: only if the session is new
--        3 meta         bytes  the record
--        4 parent       str    the parent it names; '' for none
--        5 default_ttl  int    ms until a session that has only meta expires; 0 for never
--        6 own_ttl      int    ms, a new session's own; 0 for never; '' for none
--        7 grace        int    ms a catalogue entry may outlive its session
--
-- Reply  saved <session>                       the record is stored
--        exists <session>                      mode is create and the session has meta; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  a session that has a head keeps its deadline: only commits and touches extend it.
-- Cost   one round trip, about a dozen commands.

--@include refuse
--@include head
--@include clock
--@include lease
--@include holders
--@include catalogue

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries = KEYS[7], KEYS[8]
local session, mode, meta, parent, default_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local own_ttl, grace = ARGV[6], tonumber(ARGV[7])

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state})
if broken then return refuse(session, broken) end
if stored.deleted then return {'deleted', session} end
local wrong = facts and torn(facts, log, nodes, jumps, dead, state) or unusable_catalogue(sessions, expiries)
if wrong then return refuse(session, wrong) end
if mode == 'create' and redis.call('HEXISTS', head, 'meta') == 1 then return {'exists', session} end

local lease = stored.lease and read_lease(stored.lease)
if lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
local now = milliseconds()
local deadline = deadline_of(own_ttl, stored.ttl, default_ttl, lease, now)
local hold = facts and facts.hold or hold_of(deadline, grace)
local entry, former = entry_of(session, parent ~= '' and parent), entry_of(session, stored.parent)
local committed = facts and facts.committed or redis.call('ZSCORE', sessions, former) or now

-- WRITE

--@include cataloguing

redis.call('HSET', head, 'meta', meta)
if parent ~= '' then redis.call('HSET', head, 'parent', parent) else redis.call('HDEL', head, 'parent') end
if own_ttl ~= '' and not facts then redis.call('HSET', head, 'ttl', own_ttl) end
if not facts then
  if deadline > 0 then redis.call('PEXPIREAT', head, deadline) else redis.call('PERSIST', head) end
end
if former ~= entry then drop_entry(sessions, expiries, former, now) end
redis.call('ZADD', sessions, committed, entry)
keep_entry(sessions, expiries, entry, hold, now)
return {'saved', session}
