-- enqueue: add a pending input to a session, which need not exist yet; a refusal writes nothing.
--
-- KEYS   1 head            hash  the fields `inputs`, `i:<id>` and `owner`
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
--        2 field        str    `i:` and the input's id
--        3 record       bytes  the input's record (inputs.lua)
--        4 max_count    int    the largest number of pending inputs
--        5 max_bytes    int    the largest sum of the sizes of their records
--        6 default_ttl  int    ms until a session without a commit expires; 0 for never
--        7 grace        int    ms a catalogue entry may outlive its session
--        8 access       str    owner for whom the caller acts; '' for a trusted caller
--        9 owner        str    owner that the caller expects a session without a commit to have, whose catalogue is in
--                              KEYS; '' for none
--
-- Reply  pending <session> <ms> <added>        the input is pending; the time (ms since 1970) at which it was enqueued;
--                                              added is 1 if this call enqueued it, and 0 if nothing was written
--        consumed <session>                    a commit has consumed this input; nothing written
--        reused <session>                      another input has this id, pending or consumed; nothing written
--        full <session> <count> <bytes>        the input would exceed a limit; the count and bytes of the pending ones;
--                                              nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        owner <session> <owner>               the session has another owner than a trusted caller expects; nothing
--                                              written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  the script answers a retry before it checks the limits. Only the last 128 consumed inputs are remembered.
--        A session that has a commit keeps its deadline: only commits and touches extend it. A session without one is
--        listed, gets its owner, and gets the deadline of a session that has only meta.
-- Cost   one round trip, about nine commands.

--@include int64
--@include refuse
--@include numbers
--@include head
--@include clock
--@include lease
--@include receipts
--@include holders
--@include catalogue
--@include inputs

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries, owned, owned_expiries = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local session, field, record, max_count, max_bytes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local default_ttl, grace, access, owner = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
if broken then return refuse(session, broken) end
if stored.deleted then return {'deleted', session} end
local catalogues = catalogues_of(stored.next_owner, sessions, expiries, owned, owned_expiries)
if not facts and access == '' and owner ~= stored.owner then return {'owner', session, stored.owner} end
local wrong = facts and torn(facts, log, nodes, jumps, dead, state) or not facts and unusable_catalogue(catalogues)
if wrong then return refuse(session, wrong) end

-- Answer a retry.
local pending = redis.call('HMGET', head, 'inputs', field)
local inputs = read_inputs(pending[1])
if not inputs then return refuse(session, {'corrupt', 'head', 'its account of pending inputs is unreadable'}) end
if pending[2] then
  local place, ms, known = read_input(pending[2])
  if not place then return refuse(session, {'corrupt', 'head', 'a pending input is unreadable'}) end
  if known ~= record then return {'reused', session} end
  return {'pending', session, ms, 0}
end
local found = place_of_receipt(inputs.receipts, string.sub(record, 1, 8))
if found and string.sub(inputs.receipts, found + 8, found + 15) ~= string.sub(record, 9, 16) then
  return {'reused', session}
end
if found then return {'consumed', session} end

if inputs.count >= max_count or inputs.bytes + #record > max_bytes then
  return {'full', session, inputs.count, inputs.bytes}
end
if inputs.total >= 999999999999999 then
  return refuse(session, {'corrupt', 'head', 'its pending inputs cannot be counted further'})
end
local lease = stored.lease and read_lease(stored.lease)
if lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
local now = milliseconds()
local ms = string.format('%.0f', now)
inputs.total, inputs.count, inputs.bytes = inputs.total + 1, inputs.count + 1, inputs.bytes + #record
local input = table.concat({string.format('%.0f', inputs.total), ms, record}, ' ')
local fields = {field, input, 'inputs', write_inputs(inputs)}
if stored.owner ~= stored.next_owner then fields[#fields + 1], fields[#fields + 2] = 'owner', stored.next_owner end
local has_documents = redis.call('HEXISTS', head, 'documents') == 1 -- they expire with the head
local deadline = deadline_of('', stored.ttl, default_ttl, lease, now)
local entry = entry_of(session, stored.parent)
local committed = not facts and redis.call('ZSCORE', sessions, entry) or now

-- WRITE

--@include cataloguing

redis.call('HSET', head, unpack(fields))
if not (facts or has_documents) then
  if deadline > 0 then redis.call('PEXPIREAT', head, deadline) else redis.call('PERSIST', head) end
  list_entry(catalogues, entry, committed, hold_of(deadline, grace), true, now)
end
return {'pending', session, ms, 1}
