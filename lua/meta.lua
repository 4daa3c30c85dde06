-- meta: write a session's meta record; head, revision and deadline do not change; a refusal writes nothing.
--
-- KEYS   1 head            hash  the fields `meta`, `parent`, `owner` and `ttl`
--        2 log             list  node records, counted
--        3 nodes           hash  node id -> position, counted
--        4 jumps           list  position:parent position, counted
--        5 dead            hash  position -> node id, counted
--        6 state           hash  private components, counted
--        7 sessions        zset  catalogue entry -> last commit (ms)
--        8 expiries        zset  catalogue entry -> time until which it stays (ms)
--        9 owned           zset  as sessions, for the sessions of `owner`; not used without one
--       10 owned_expiries  zset  as expiries, for the sessions of `owner`; not used without one
--
-- ARGV   1 session      str    session id, echoed
--        2 mode         str    save: replace any record; compare: only if the record is `known`
--        3 meta         bytes  the record
--        4 parent       str    the parent it names; '' for none
--        5 default_ttl  int    ms until a session that has only meta expires; 0 for never
--        6 own_ttl      int    ms, a new session's own; 0 for never; '' for none
--        7 grace        int    ms a catalogue entry may outlive its session
--        8 known        bytes  the record that mode compare replaces; '' for none
--        9 access       str    owner for whom the caller acts; '' for a trusted caller
--       10 owner        str    owner that the caller expects the session to have, whose catalogue is in KEYS; '' for
--                              none
--
-- Reply  saved <session>                       the record is stored
--        exists <session>                      mode is compare and another record is stored; nothing written
--        claimed <session>                     as exists, but the session had neither owner nor head: it is the
--                                              caller's now
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        owner <session> <owner>               the session has another owner than a trusted caller expects; nothing
--                                              written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  a session that has a head keeps its deadline: only commits and touches extend it.
-- Cost   one round trip, about a dozen commands.

--@include refuse
--@include numbers
--@include head
--@include clock
--@include lease
--@include holders
--@include catalogue

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries, owned, owned_expiries = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local session, mode, meta, parent, default_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local own_ttl, grace, known, access, owner = ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
if broken then return refuse(session, broken) end
if stored.deleted then return {'deleted', session} end
if access == '' and owner ~= stored.owner then return {'owner', session, stored.owner} end
local catalogues = catalogues_of(stored.next_owner, sessions, expiries, owned, owned_expiries)
local wrong = facts and torn(facts, log, nodes, jumps, dead, state) or unusable_catalogue(catalogues)
if wrong then return refuse(session, wrong) end
local exists = mode == 'compare' and (redis.call('HGET', head, 'meta') or '') ~= known
if exists and stored.owner == stored.next_owner then return {'exists', session} end
if exists then parent, own_ttl = stored.parent or '', '' end

local lease = stored.lease and read_lease(stored.lease)
if lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
local now = milliseconds()
local deadline = deadline_of(own_ttl, stored.ttl, default_ttl, lease, now)
local hold = facts and facts.hold or hold_of(deadline, grace)
local entry, former = entry_of(session, parent ~= '' and parent), entry_of(session, stored.parent)
local committed = facts and facts.committed or redis.call('ZSCORE', sessions, former) or now
local has_documents = redis.call('HEXISTS', head, 'documents') == 1 -- they expire with the head
local done = {'saved', session}
if exists then done = {'claimed', session} end

-- WRITE

--@include cataloguing

if not exists then redis.call('HSET', head, 'meta', meta) end
if parent ~= '' then redis.call('HSET', head, 'parent', parent) else redis.call('HDEL', head, 'parent') end
if stored.owner ~= stored.next_owner then redis.call('HSET', head, 'owner', stored.next_owner) end
if own_ttl ~= '' and not facts then redis.call('HSET', head, 'ttl', own_ttl) end
if not (facts or has_documents) then
  if deadline > 0 then redis.call('PEXPIREAT', head, deadline) else redis.call('PERSIST', head) end
end
if former ~= entry then drop_entry(catalogues, former, now) end
list_entry(catalogues, entry, committed, hold, true, now)
return done
