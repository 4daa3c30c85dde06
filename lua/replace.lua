-- replace: publish a head revision for every commit that commit.lua does not make; a refusal changes nothing.
--
-- KEYS   1 head            hash  facts, refs, body, receipts, meta, ledger rows
--        2 log             list  node records
--        3 nodes           hash  node id -> position, followed by `u` if the node is a user's message
--        4 jumps           list  position:parent position
--        5 dead            hash  position -> node id
--        6 state           hash  private components: p plugin snapshot, x execution state
--        7 sessions        zset  catalogue entry -> last commit (ms)
--        8 expiries        zset  catalogue entry -> deadline of the entry (ms)
--        9 orphans         zset  blobs without a holder -> deadline (ms)
--       10 owned           zset  as sessions, for the sessions of `owner`; not used without one
--       11 owned_expiries  zset  as expiries, for the sessions of `owner`; not used without one
--       12 streams         hash  generation -> record of its stream
--       13 events          list  events of the stream that is finished; not used without `finishes`
--       14 blobs           hash  c content, u promised until (ms), number of holders by deadline (ms): first the blobs
--                                that the new head holds (acquired, then kept), then those that it releases
--
-- ARGV   1 session       str    session id, echoed
--        2 expected      int    revision that this commit builds on; '' for any
--        3 builds_on     bytes  tag of the commit that this commit builds on; '' for any
--        4 tag           bytes  8: hash of the commit id
--        5 meaning       bytes  8: hash of the commit's content without timestamps
--        6 before        bytes  refs that the client expects in the head
--        7 after         bytes  refs of the new head
--        8 body          bytes  the client's part of the head
--        9 leaf          str    '' none, @k the k-th node of this commit (from 0), =id a stored node, ~ as it is
--       10 default_ttl   int    ms from now until a session without its own ttl expires; 0 for never
--       11 own_ttl       int    ms, the new own ttl of the session; 0 for never; '' to keep the present one
--       12 grace         int    ms that a blob outlives its last holder
--       13 acquired      int    number of blobs newly held
--       14 kept          int    number of blobs held before and after
--       15 rows          int    number of usage rows
--       16 count         int    number of nodes
--       17 users         str    one character for each node: `u` for a user's message, else -
--       18 sharded       int    1: the server is a cluster, in which a channel belongs to a slot, as a key does
--       19 lease         str    generation, token and owner of a lease that must be held, separated by blanks; '' for
--                               none
--       20 releases      str    the same for a lease that this commit releases
--       21 run           str    six numbers (sums.lua): high and low half of the sum of this commit's nodes, as if the
--                               first were at position 0; high and low half of their plain sum; for extend, the two
--                               halves that the dropped nodes have in the log's sum, else 0 0
--       22 plugin        bytes  content of a private plugin snapshot; '' if it does not change
--       23 execution     bytes  content of a private execution state; '' if it does not change
--       24 delta         bytes  unchanged, append or replace; faulty if the client found the nodes or the leaf
--                               wrong; extend ...: a replacement that keeps the first of the stored nodes (regraph.lua)
--       25 checks        str    strict or lenient
--       26 origin        str    '' an ordinary commit; new: the session must not exist; for an imported session, which
--                               must not exist either: its revision before this commit and the commit's time (ms)
--       27 history       bytes  the receipts of an imported session before this commit
--       28 meta          bytes  the meta record of a new session; '' for none
--       29 parent        str    the parent that the meta record names; '' for none
--       30 seen          str    epoch, and number of tombstoned nodes of the log, when the graph of a replacement was
--                               read; '' if unknown
--       31 access        str    owner for whom the caller acts; '' for a trusted caller
--       32 owner         str    owner that the caller expects the session to have, whose catalogue is in KEYS; '' for
--                               none
--       33 consumed      int    number of pending inputs that this commit consumes
--       34 finishes      str    number of events, token and generation of a stream that this commit finishes,
--                               separated by blanks; '' for none
--       35 values        any    acquired + kept contents ('' if it must be stored), the usage rows' fields, for each
--                               row input, output, cached, reasoning, then count ids, count links, count records, then
--                               the ids of the stored nodes that extend drops, then the fields of the consumed inputs
--                               in the head.
--                               A link is '' the node before it in this commit, - none, @k, or =id
--
-- Reply  committed <session> <revision> <epoch> <finished>
--                                              the new head is published; epoch of its log; 1 if the stream is finished
--        lost <session> <why> <revision>       the lease is expired, taken, released or gone; the revision that an
--                                              earlier attempt of this commit made, else ''; nothing written
--        replayed <session> <revision> <epoch>
--                                              an earlier attempt made this commit; epoch of the present log; nothing
--                                              written
--        reused <session>                      the commit id was used for another meaning; nothing written
--        conflict <session> <revision>         the head has another revision or commit; nothing written
--        gone <session> <revision>             the expected revision is one of a deleted session, whose id this session
--                                              uses again; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        exists <session> <revision>           the session must be new, but exists; or it has documents and no graph;
--                                              nothing written
--        refs <session> <refs> <owner>         the head has other refs than `before`, or another owner than a trusted
--                                              caller expects; nothing written
--        missing <session> <index> ...         blobs that are neither sent nor stored; nothing written
--        hidden <session> <revision> <count>   nodes were tombstoned since the graph was read; nothing written
--        unlike <session>                      the claim of extend is about another log; nothing written
--        faulty <session>                      delta is faulty, and no other check failed; nothing written
--        unpending <session> <index>           that input to consume is not pending; nothing written
--        collision <session> <node>            that node's id is taken; nothing written
--        parent <session> <node>               that node's parent is not a live node; nothing written
--        leaf <session>                        the leaf is not a live node, or '' in a non-empty graph; nothing written
--        overflow <session> <row> <counter>    a ledger counter would exceed 64 bits; nothing written
--        corrupt <session> <family> <reason>   stored bytes break an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is missing; nothing written
--
-- Order  as commit.lua. This script replaces the graph, accepts links by id alone (lenient checks), starts a session
--        for a fork or an import, and accepts more nodes or rows than fit in one command.
-- Cost   one round trip; O(nodes + blobs + rows of this commit + nodes it drops).

--@include int64
--@include refuse
--@include numbers
--@include head
--@include clock
--@include lease
--@include receipts
--@include admission
--@include sums
--@include graph
--@include regraph
--@include ledger
--@include inputs
--@include consumption
--@include holders
--@include components
--@include catalogue
--@include streams
--@include stream_finish

local KEYS, ARGV = KEYS, ARGV -- access to a local is faster
local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries, orphans, owned, owned_expiries = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local streams, events = KEYS[12], KEYS[13]
local session, expected, builds_on, tag, meaning = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local before, after, body, leaf = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local default_ttl, own_ttl, grace = tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12])
local acquired, kept, rows, count = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
local users, sharded, lease, releases = ARGV[17], ARGV[18] == '1', ARGV[19], ARGV[20]
local run, plugin, execution, delta, strict = ARGV[21], ARGV[22], ARGV[23], ARGV[24], ARGV[25] == 'strict'
local origin, history, meta, parent, seen = ARGV[26], ARGV[27], ARGV[28], ARGV[29], ARGV[30]
local access, owner, consumed, finishes = ARGV[31], ARGV[32], tonumber(ARGV[33]), ARGV[34]
local blobs, values = 14, 35
local usage_rows = values + acquired + kept
local ids = usage_rows + 5 * rows
local records = ids + 2 * count
local gone = records + count
local call, CHUNK = redis.call, 1000

-- CHECK

-- Check that the session is intact, and that this commit may be made.
local moves = origin ~= '' and origin ~= 'new'
local reply, facts, stored, actual, now, held_lease = admit(session, head, {log, nodes, jumps, dead, state}, access,
  false, tag, meaning, lease, count > 0, plugin ~= '' or execution ~= '', moves)
if reply then return reply end
if origin ~= '' and (facts or call('HEXISTS', head, 'meta') == 1) then return {'exists', session, actual} end
reply = misplaced(session, head, stored, expected, builds_on, actual)
if reply then return reply end
if delta == 'faulty' then return {'faulty', session} end
if before ~= stored.refs or access == '' and owner ~= stored.owner then
  return {'refs', session, stored.refs, stored.owner}
end
-- A tombstone does not change the revision. So the revision does not show whether the client knows the current log.
local later = tombstoned_since(seen, facts)
if later > 0 then return {'hidden', session, actual, later} end
local claim = read_claim(delta, facts, log)
if claim == false then return {'unlike', session} end

-- Compute the new head.
local is_new = not facts -- but the session may have meta, with a deadline
facts = facts or new_facts(stored.began)
local committed = string.format('%.0f', now)
actual = stored.counted
if moves then
  actual, committed = string.match(origin, '^(%d+) (%d+)$')
  stored.known = history
end
local revision = add64(actual, '1')
if not revision then return refuse(session, {'corrupt', 'head', 'its revision cannot be counted further'}) end
local replaces, drops, less = delta == 'replace', claim and claim.drops or 0, claim and claim.less or 0
local base = replaces and 0 or facts.length - drops
local cut, uncut = plan_cut(facts, nodes, jumps, base, drops, gone)
if not cut then return refuse(session, uncut) end
local retaken, taken = 0, nil
if not replaces then retaken, taken = count_retaken(facts, nodes, base, strict, count, ids) end
if taken then return refuse(session, taken) end
local as = {replaces = replaces, base = base, strict = strict, moves = moves, drops = drops}
local graph, refusal = plan_links(facts, nodes, dead, as, count, ids, leaf)
if refusal then return refuse(session, refusal) end
local known = {}
for row = 0, rows - 1 do known[row + 1] = call('HGET', head, ARGV[usage_rows + row]) end
local fields, usage = plan_usage(facts.usage, rows, usage_rows, known, 0)
if not fields then return refuse(session, usage) end
local answered, unanswered = plan_consumption(head, consumed, fields)
if not answered then return refuse(session, unanswered) end

-- Compute the deadline and the holds on blobs.
local finished = plan_finish(streams, finishes, now)
local frees = is_claim(held_lease, releases)
local deadline = deadline_of(own_ttl, stored.ttl, default_ttl, not frees and held_lease, now)
local had, hold = facts.hold, hold_of(deadline, grace)
local had_deadline = facts.deadline > 0 or is_new
local holds, unheld = plan_holds(blobs, acquired, kept, values, had, hold, orphans)
if not holds then return refuse(session, unheld) end
local set, drop = plan_state(before, after, plugin, execution)
local entry = entry_of(session, parent ~= '' and parent or stored.parent)
local catalogues = catalogues_of(stored.next_owner, sessions, expiries, owned, owned_expiries)
local listed, unlisted = is_listed(catalogues, entry)
local moves_entry = had ~= hold or is_new or not listed
unlisted = unlisted or moves_entry and unusable_catalogue(catalogues)
if unlisted then return refuse(session, unlisted) end

local replaced = replaces and facts.length > 0
local loose = graph.loose or retaken > 0 or not replaces and facts.loose == '1'
if drops > 0 or replaces and not is_new then -- positions get other nodes, so this is another log
  facts.epoch = math.max(facts.epoch + 1, now)
end
if replaces then
  facts.length, facts.live, facts.jumps, facts.dead, facts.ids, facts.bytes = 0, 0, 0, 0, 0, 0
  facts.users, facts.first, facts.high, facts.low = 0, -1, 0, 0
elseif drops > 0 then
  facts.length, facts.live, facts.ids, facts.jumps, facts.bytes = base, base, base, cut.jumps, facts.bytes - less
  facts.users = facts.users - cut.users
  if facts.first >= base then facts.first = -1 end
end
if count > 0 or drops > 0 then facts.high, facts.low = summed(facts.high, facts.low, run, base) end
facts.revision, facts.usage, facts.leaf, facts.private = revision, usage, graph.leaf, count_private(after)
facts.deadline, facts.hold, facts.committed, facts.loose = deadline, hold, committed, loose and '1' or '0'
facts.length, facts.live, facts.jumps = facts.length + count, facts.live + count, facts.jumps + #graph.jumps
facts.ids = facts.ids + count - retaken + #graph.names / 2
for index = 0, count - 1 do
  facts.bytes = facts.bytes + #ARGV[records + index]
  if string.byte(users, index + 1) == 117 then
    facts.users = facts.users + 1
    if facts.first == -1 then facts.first = base + index end
  end
end
if own_ttl ~= '' then fields[#fields + 1], fields[#fields + 2] = 'ttl', own_ttl end
if stored.owner ~= stored.next_owner then fields[#fields + 1], fields[#fields + 2] = 'owner', stored.next_owner end
if meta ~= '' then fields[#fields + 1], fields[#fields + 2] = 'meta', meta end
if parent ~= '' then fields[#fields + 1], fields[#fields + 2] = 'parent', parent end
if frees then fields[#fields + 1], fields[#fields + 2] = 'lease', write_lease(held_lease.generation, 0, '', '') end

-- WRITE

--@include holding
--@include cataloguing
--@include lifetime
--@include announcing
--@include finishing

if drops > 0 then
  -- These commands change nothing. On a full server, or without the right to LTRIM, they fail before any other write.
  call('HSET', head, 'refs', before)
  call('LTRIM', log, 0, -1)
end
-- HSET comes first: a full server refuses it here, and after the first write of a script it refuses no other.
call('HSET', head, 'facts', write_facts(facts), 'refs', after, 'body', body,
  'receipts', with_receipt(stored.known, tag, meaning), unpack(fields, 1, math.min(CHUNK, #fields)))
for from = CHUNK + 1, #fields, CHUNK do
  call('HSET', head, unpack(fields, from, math.min(from + CHUNK - 1, #fields)))
end
if moves then call('HDEL', head, 'past') end -- the origin's revisions and receipts are the session's own
if replaced then call('UNLINK', log, nodes, jumps, dead) end
if drops > 0 then
  call('LTRIM', log, 0, base - 1)
  if cut.jumps == 0 then call('UNLINK', jumps) else call('LTRIM', jumps, 0, cut.jumps - 1) end
end
for from = 0, drops - 1, CHUNK do
  call('HDEL', nodes, unpack(ARGV, gone + from, gone + math.min(from + CHUNK, drops) - 1))
end
for from = 0, count - 1, CHUNK do
  local to, places = math.min(from + CHUNK, count) - 1, {}
  call('RPUSH', log, unpack(ARGV, records + from, records + to))
  for index = from, to do
    places[#places + 1] = ARGV[ids + index]
    places[#places + 1] = string.byte(users, index + 1) == 117 and base + index .. 'u' or base + index
  end
  call('HSET', nodes, unpack(places))
end
for from = 1, #graph.names, CHUNK do
  call('HSET', nodes, unpack(graph.names, from, math.min(from + CHUNK - 1, #graph.names)))
end
for from = 1, #graph.jumps, CHUNK do
  call('RPUSH', jumps, unpack(graph.jumps, from, math.min(from + CHUNK - 1, #graph.jumps)))
end
if #set > 0 then call('HSET', state, unpack(set)) end
if #drop > 0 then call('HDEL', state, unpack(drop)) end
if #answered > 0 then call('HDEL', head, unpack(answered)) end
move_holds(holds, blobs, acquired, kept, values, had, hold, grace, now, orphans)
list_entry(catalogues, entry, committed, hold, moves_entry, now)
expire_session(facts, deadline, had_deadline, head, log, nodes, jumps, dead, state)
if finished then finish_stream(streams, events, finished, sharded) end
announce(sharded, head, 'committed')
return {'committed', session, revision, facts.epoch + 0, finished and 1 or 0}
