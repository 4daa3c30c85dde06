-- touch: extend a session's deadline to its ttl from now; a refusal changes nothing.
--
-- KEYS   1 head            hash  facts are rewritten, `ttl` where it changes
--        2 log             list  node records
--        3 nodes           hash  node id -> position
--        4 jumps           list  position:parent position
--        5 dead            hash  position -> node id
--        6 state           hash  private components: p plugin snapshot, x execution state
--        7 sessions        zset  catalogue entry -> last commit (ms)
--        8 expiries        zset  catalogue entry -> time until which it stays (ms)
--        9 owned           zset  as sessions, for the sessions of `owner`; not used without one
--       10 owned_expiries  zset  as expiries, for the sessions of `owner`; not used without one
--       11 documents       hash  name -> content
--       12 names           zset  names of documents in their order
--       13 blobs           hash  those the head holds: c content, holders until each time
--
-- ARGV   1 session      str    session id, echoed
--        2 before       bytes  refs that the client expects in the head
--        3 default_ttl  int    ms from now until a session without a ttl of its own expires; 0 for never
--        4 own_ttl      int    ms, the session's own from now on; 0 for never; '' to keep the current one
--        5 grace        int    ms a blob outlives its last holder
--        6 access       str    owner for whom the caller acts; '' for a trusted caller
--        7 owner        str    owner that the caller expects the session to have, whose catalogue is in KEYS; '' for
--                              none
--
-- Reply  touched <session> <deadline>          all keys of the session expire at <deadline> (ms since 1970; 0: never)
--        absent <session>                      the session does not exist; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        refs <session> <refs> <owner>         the head holds other refs than `before`, or another owner than a trusted
--                                              caller expects; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a part of the session is gone; nothing written
--
-- Order  the script checks the blobs before it moves the deadline. It reports a session with missing parts and does not
--        extend it.
-- Cost   one round trip; about ten commands, and once in each grace period a few for each blob.

--@include refuse
--@include numbers
--@include head
--@include clock
--@include lease
--@include holders
--@include catalogue
--@include documents

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries, owned, owned_expiries = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local documents, names, blobs = KEYS[11], KEYS[12], 13
local session, before, default_ttl, own_ttl, grace = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local access, owner = ARGV[6], ARGV[7]

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
if broken then return refuse(session, broken) end
if stored.deleted then return {'deleted', session} end
if not (facts or is_begun(head)) then return {'absent', session} end
if before ~= stored.refs or access == '' and owner ~= stored.owner then
  return {'refs', session, stored.refs, stored.owner}
end
local catalogues = catalogues_of(stored.owner, sessions, expiries, owned, owned_expiries)
local wrong = facts and torn(facts, log, nodes, jumps, dead, state) or unusable_catalogue(catalogues)
local account, torn_documents = open_documents(head, documents, names)
wrong = wrong or not account and torn_documents
if wrong then return refuse(session, wrong) end

local lease = stored.lease and read_lease(stored.lease)
if lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
local now = milliseconds()
local deadline = deadline_of(own_ttl, stored.ttl, default_ttl, lease, now)
local hold = hold_of(deadline, grace)
local had, fields, entry = facts and facts.hold, {'ttl', own_ttl}, entry_of(session, stored.parent)
if own_ttl == '' then fields = {} end
if facts then
  facts.deadline, facts.hold = deadline, hold
  fields[#fields + 1] = 'facts'
  fields[#fields + 1] = write_facts(facts)
end

local numbers = {}
for index = blobs, #KEYS do
  local found, failed = numbers_of(KEYS[index], had, hold, 'u')
  local there = found and found[1] > 0
  if found and not there then there, failed = is_stored(KEYS[index]) end
  if not failed and not there then
    failed = {'evicted', string.sub(KEYS[index], -69), 'is gone, the head names it'}
  end
  if failed then return refuse(session, failed) end
  numbers[index] = found
end
local committed = facts and facts.committed or redis.call('ZSCORE', sessions, entry) or now

-- WRITE

--@include holding
--@include cataloguing

if #fields > 0 then redis.call('HSET', head, unpack(fields)) end
for _, key in ipairs({head, log, nodes, jumps, dead, state, documents, names}) do
  if deadline > 0 then redis.call('PEXPIREAT', key, deadline) else redis.call('PERSIST', key) end
end
if had ~= hold then
  local free = {}
  for index = blobs, #KEYS do
    local found = numbers[index]
    add_holder(KEYS[index], hold, found[2], now)
    if found[1] > 0 then drop_holder(KEYS[index], had, found[1], found[3], grace, now, free) end
  end
end
list_entry(catalogues, entry, committed, hold, had ~= hold, now)
return {'touched', session, deadline}
