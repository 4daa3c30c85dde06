-- delete: delete all keys of a session, and refuse late writes of its handles for a while; a refusal deletes nothing.
--
-- KEYS   1 head            hash  the session's head; afterwards, for a while, only the deletion marker, or what the
--                              next session continues and the replies to retries of deletions
--        2 log             list  node records
--        3 nodes           hash  node id -> position
--        4 jumps           list  position:parent position
--        5 dead            hash  position -> node id
--        6 state           hash  private components: p plugin snapshot, x execution state
--        7 sessions        zset  catalogue entry -> last commit (ms)
--        8 expiries        zset  catalogue entry -> time until which it stays (ms)
--        9 orphans         zset  blobs without a holder -> ms
--       10 owned           zset  as sessions, for the sessions of `owner`; not used without one
--       11 owned_expiries  zset  as expiries, for the sessions of `owner`; not used without one
--       12 streams         hash  generation -> record of a stream
--       13 documents       hash  name -> content
--       14 names           zset  names of documents in their order
--       15 blobs           any   those the head holds, hashes: c content, u promised until (ms), holders until each
--                                time; then the events of the streams of `generations`, lists
--
-- ARGV   1 session  str    session id, echoed
--        2 before   bytes  refs that the client expects in the head
--        3 grace    int    ms a blob outlives its last holder
--        4 marker   int    ms during which late writes are refused; 0 for none
--        5 request  str    hex digits, unique to this deletion; stored, so that a retry gets the first reply
--        6 sharded  int    1: the server is a cluster, whose channels belong to a slot as keys do
--        7 access   str    owner for whom the caller acts; '' for a trusted caller
--        8 owner    str    owner that the caller expects the session to have, whose catalogue is in KEYS; '' for
--                          none
--        9 reusable str    1: the id may be used again at once, and `past` (see receipts.lua) refuses late commits;
--                          0: a marker refuses every write
--       10 builds_on  bytes  tag of the commit that must be the session's last one; '' for any
--       11 generations  str  those whose events are in KEYS
--
-- Reply  removed <session> <nodes> <blobs> <whole>   deleted, with the numbers of its live nodes and components; whole
--                                                    is 1 if no part was missing or unreadable, so that a marker is set
--        absent <session>                            the session does not exist; nothing written
--        freed <session>                             with reusable: only a deletion marker was there; it is removed
--        foreign <session>                           the session is another owner's than `access`; nothing written
--        conflict <session> <revision>                      another commit is the session's last one; nothing written
--        refs <session> <refs> <owner> <generation> ...
--                                                    the head holds other refs than `before`, or another owner than a
--                                                    trusted caller expects, or there is a stream of a generation that
--                                                    is not in `generations`; nothing written
--        corrupt <session> <family> <reason>         the shard's own lists are unusable; nothing written
--
-- Order  without a head, the remaining keys of a session have no owner that could be compared, so every caller may
--        delete them. Streams have one of their own.
--        A reusable id keeps the revision, the receipts and the generation of the lease, and the next session continues
--        them. A marker keeps them without the receipts, for a later deletion that makes the id reusable.
--        `deletions` has the last four deletions of a reusable id, as `request nodes blobs`, the newest first. They
--        answer a retry that arrives after the next session began. That one may be another owner's, so the owner is
--        compared afterwards.
--        A session with missing parts leaves no marker, because a user deletes it to start it again. A late writer that
--        builds on it is refused, too, because there is no head. UNLINK comes first: a full server accepts it, and
--        after the first write of a script it accepts the others.
-- Cost   one round trip, O(1): UNLINK frees large values in the background.

--@include refuse
--@include int64
--@include numbers
--@include head
--@include clock
--@include lease
--@include receipts
--@include holders
--@include catalogue
--@include documents

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries, orphans, owned, owned_expiries = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local streams, documents, names, blobs = KEYS[12], KEYS[13], KEYS[14], 15
local session, before, grace, marker, request = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local sharded, access, owner, reusable, builds_on = ARGV[6] == '1', ARGV[7], ARGV[8], ARGV[9] == '1', ARGV[10]
local generations = 11
local events = #KEYS + generations - #ARGV

-- CHECK

local present = redis.call('EXISTS', head, log, nodes, jumps, dead, state, streams, documents, names)
local stored = redis.pcall('HMGET', head, 'facts', 'refs', 'parent', 'deleted', 'owner', 'deletions', 'lease',
  'receipts', 'meta', 'inputs')
if stored.err then stored = {} end
local nodes_before, blobs_before = string.match(stored[4] or stored[6] or '', request .. ' ([%d-]+) ([%d-]+)')
if nodes_before == '-' then return {'freed', session} end
if nodes_before then return {'removed', session, tonumber(nodes_before), tonumber(blobs_before), 1} end
local records = redis.pcall('HKEYS', streams)
if records.err then records = {} end
local owns = #records > 0 and redis.call('HGET', streams, '')
-- A session that began after the streams of another owner is its own owner's.
local is_owned = stored[1] or stored[5]
if is_foreign(access, stored[5], stored[1]) or not is_owned and is_foreign(access, owns, false) then
  return {'foreign', session}
end
local lease = stored[7] and read_lease(stored[7])
local is_past = stored[6] and not (stored[1] or stored[9] or stored[10] or lease and lease.token ~= '')
local is_free = present == 0 or present == 1 and is_past
local is_marker = present == 1 and stored[4]
if is_free or is_marker and not reusable then return {'absent', session} end
if builds_on ~= '' and not (stored[8] and is_last(stored[8], builds_on)) then
  return {'conflict', session, string.match(stored[1] or '', '^%d+') or '0'}
end
local refs, parent, held_by = stored[2] or '', stored[3], stored[5] or not stored[1] and owner or ''
if not count_private(refs) then refs = '' end
local named = {}
local moved = {'refs', session, refs, held_by}
for index = generations, #ARGV do named[ARGV[index]] = true end
local is_moved = refs ~= before or access == '' and owner ~= held_by
for _, generation in ipairs(records) do
  if generation ~= '' then
    moved[#moved + 1] = generation
    is_moved = is_moved or not named[generation]
  end
end
if is_moved then return moved end

local catalogues = catalogues_of(held_by, sessions, expiries, owned, owned_expiries)
local wrong = unusable_catalogue(catalogues)
local waiting = redis.pcall('ZCARD', orphans)
if type(waiting) == 'table' then wrong = unusable('orphans', waiting) end
if wrong then return refuse(session, wrong) end

local facts, broken = open_head(head, {log, nodes, jumps, dead, state}, access)
local whole = not broken and not (facts and torn(facts, log, nodes, jumps, dead, state))
  and open_documents(head, documents, names) ~= nil
local now, numbers, released = milliseconds(), {}, facts and whole and facts.private or 0
for index = blobs, events - 1 do
  local found = facts and numbers_of(KEYS[index], facts.hold, 'u')
  whole = whole and found and found[1] > 0
  if found and found[1] > 0 then
    numbers[index] = found
    released = released + 1
  end
end
local deletion = is_marker and request .. ' - -' or table.concat({request, facts and facts.live or 0, released}, ' ')
local past = not (facts or broken) and past_of(head) or {revision = '0', epoch = 0, receipts = ''}
if facts then past = {revision = facts.revision, epoch = facts.epoch, receipts = stored[8]} end
local revision, epoch = string.match(is_marker and stored[4] or '', ' (%d+) (%d+)$')
if revision then -- no commit has receipts of zeros
  past = {revision = revision, epoch = epoch, receipts = string.rep('\0', 16 * math.min(32, tonumber(revision)))}
end
epoch = string.format('%.0f', past.epoch)
local is_sound = not broken and not broken_receipts(past.receipts, past.revision) and add64(past.revision, '1')
local earlier = string.match(stored[6] or '', '^[^,]*,?[^,]*,?[^,]*')
local done = {'removed', session, facts and facts.live or 0, released, whole and 1 or 0}
if is_marker then done = {'freed', session} end

-- WRITE

--@include holding
--@include cataloguing
--@include announcing

redis.call('UNLINK', head, log, nodes, jumps, dead, state, documents, names)
if marker > 0 and (reusable or whole) then
  if reusable then
    redis.call('HSET', head, 'deletions', deletion .. ',' .. earlier)
    if is_sound then redis.call('HSET', head, 'past', past.revision .. ' ' .. epoch .. ' ' .. past.receipts) end
  else
    redis.call('HSET', head, 'deleted', table.concat({deletion, past.revision, epoch}, ' '))
  end
  if lease then redis.call('HSET', head, 'lease', write_lease(lease.generation, 0, '', '')) end
  redis.call('PEXPIRE', head, marker)
end
redis.call('UNLINK', streams, unpack(KEYS, events))
drop_entry(catalogues, entry_of(session, parent), now)
local free = {}
for index, found in pairs(numbers) do
  drop_holder(KEYS[index], facts.hold, found[1], found[2], grace, now, free)
end
list_orphans(orphans, free, waiting, grace, now)
announce(sharded, head, 'deleted')
for index = events, #KEYS do announce(sharded, KEYS[index], 'deleted') end
return done
