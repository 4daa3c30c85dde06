-- commit: publish a head revision that appends nodes or leaves them as they are; a refusal changes nothing.
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
--       24 access        str    owner for whom the caller acts; '' for a trusted caller
--       25 owner         str    owner that the caller expects the session to have, whose catalogue is in KEYS; '' for
--                               none
--       26 consumed      int    number of pending inputs that this commit consumes
--       27 finishes      str    number of events, token and generation of a stream that this commit finishes,
--                               separated by blanks; '' for none
--       28 values        any    acquired + kept contents ('' for a blob that must be stored), the fields of the usage
--                               rows, for each row input, output, cached, reasoning, then count ids, count links, count
--                               records, then the fields of the consumed inputs in the head. A link is '' the node
--                               before it in this commit, - none, @k, or =id
--
-- Reply  committed <session> <revision> <epoch> <finished>
--                                              the new head is published; epoch of its log; 1 if the stream is finished
--        lost <session> <why> <revision>       the lease is expired, taken, released or gone; the revision that an
--                                              earlier attempt of this commit made, else ''; nothing written
--        replayed <session> <revision> <epoch>
--                                              an earlier attempt made this commit; epoch of the present log; nothing
--                                              written
--        reused <session>                      the commit id was used for another meaning; nothing written
--        exists <session> <revision>           the session has documents and no graph; nothing written
--        conflict <session> <revision>         the head has another revision or commit; nothing written
--        gone <session> <revision>             the expected revision is one of a deleted session, whose id this session
--                                              uses again; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        refs <session> <refs> <owner>         the head has other refs than `before`, or another owner than a trusted
--                                              caller expects; nothing written
--        missing <session> <index> ...         blobs that are neither sent nor stored; nothing written
--        unpending <session> <index>           that input to consume is not pending; nothing written
--        collision <session> <node>            that node's id is taken; nothing written
--        parent <session> <node>               that node's parent is not a live node; nothing written
--        leaf <session>                        the leaf is not a live node, or '' in a non-empty graph; nothing written
--        overflow <session> <row> <counter>    a ledger counter would exceed 64 bits; nothing written
--        corrupt <session> <family> <reason>   stored bytes break an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is missing; nothing written
--
-- Order  this script makes commits with strict checks and bounded arguments; replace.lua makes all others.
--        It checks the lease first, even before a retry's receipt, so that a worker that lost the lease gets an error.
--        If a lease to release has another holder by now, the lease stays and the commit is made.
--        It answers a retry before it compares revisions and refs, because the first attempt has moved the head. It
--        answers a retry after it has counted the keys, so that it never acknowledges a torn session. It checks every
--        type, count and overflow above WRITE, because Redis does not undo what a script wrote before it failed.
-- Cost   one round trip, some 15 commands; O(nodes + blobs + rows of this commit), independent of the session's size.

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
--@include ledger
--@include inputs
--@include consumption
--@include holders
--@include components
--@include catalogue
--@include streams
--@include stream_finish

local KEYS, ARGV = KEYS, ARGV -- access to a local is faster than to a global
local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local sessions, expiries, orphans, owned, owned_expiries = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local streams, events = KEYS[12], KEYS[13]
local session, expected, builds_on, tag, meaning = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local before, after, body, leaf = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local default_ttl, own_ttl, grace = tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12])
local acquired, kept, rows, count = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
local users, sharded, lease, releases = ARGV[17], ARGV[18] == '1', ARGV[19], ARGV[20]
local run, plugin, execution, access, owner = ARGV[21], ARGV[22], ARGV[23], ARGV[24], ARGV[25]
local consumed, finishes = tonumber(ARGV[26]), ARGV[27]
local blobs, values = 14, 28
local usage_rows = values + acquired + kept
local ids = usage_rows + 5 * rows
local records = ids + 2 * count
local call = redis.call

-- CHECK

-- Read and verify the session; end here if the commit must not be made, or was made before.
local asked = rows > 0 and {unpack(ARGV, usage_rows, usage_rows + rows - 1)}
local reply, facts, stored, actual, now, held_lease = admit(session, head, {log, nodes, jumps, dead, state}, access,
  asked, tag, meaning, lease, count > 0, plugin ~= '' or execution ~= '')
if reply then return reply end
reply = misplaced(session, head, stored, expected, builds_on, actual)
if reply then return reply end
if before ~= stored.refs or access == '' and owner ~= stored.owner then
  return {'refs', session, stored.refs, stored.owner}
end

-- Plan the new graph and ledger.
local is_new = not facts -- a session without a commit may have meta, and a deadline for it
facts = facts or new_facts(stored.began)
local revision = add64(stored.counted, '1')
if not revision then return refuse(session, {'corrupt', 'head', 'its revision cannot be counted further'}) end
local graph, refusal = plan_append(facts, nodes, dead, count, ids, users, leaf)
if refusal then return refuse(session, refusal) end
local fields, usage = plan_usage(facts.usage, rows, usage_rows, stored, 8)
if not fields then return refuse(session, usage) end
local answered, unanswered = plan_consumption(head, consumed, fields)
if not answered then return refuse(session, unanswered) end

-- Plan the deadline, the blobs, the private components and the catalogue entry.
local finished = plan_finish(streams, finishes, now)
local frees = is_claim(held_lease, releases)
local deadline = deadline_of(own_ttl, stored.ttl, default_ttl, not frees and held_lease, now)
local had, hold = facts.hold, hold_of(deadline, grace)
local had_deadline = facts.deadline > 0 or is_new
local holds, unheld = plan_holds(blobs, acquired, kept, values, had, hold, orphans)
if not holds then return refuse(session, unheld) end
local set, drop = plan_state(before, after, plugin, execution)
local entry = entry_of(session, stored.parent)
local catalogues = catalogues_of(stored.next_owner, sessions, expiries, owned, owned_expiries)
local listed, unlisted = is_listed(catalogues, entry)
local moves_entry = had ~= hold or is_new or not listed
unlisted = unlisted or moves_entry and unusable_catalogue(catalogues)
if unlisted then return refuse(session, unlisted) end

facts.revision, facts.usage, facts.leaf, facts.private = revision, usage, graph.leaf, count_private(after)
facts.deadline, facts.hold, facts.committed = deadline, hold, string.format('%.0f', now)
facts.jumps, facts.ids = facts.jumps + #graph.jumps, facts.ids + count + graph.names
if count > 0 then facts.high, facts.low = summed(facts.high, facts.low, run, facts.length) end
facts.length, facts.live = facts.length + count, facts.live + count
facts.bytes, facts.users, facts.first = facts.bytes + graph.bytes, facts.users + graph.users, graph.first
if own_ttl ~= '' then fields[#fields + 1], fields[#fields + 2] = 'ttl', own_ttl end
if stored.owner ~= stored.next_owner then fields[#fields + 1], fields[#fields + 2] = 'owner', stored.next_owner end
if frees then fields[#fields + 1], fields[#fields + 2] = 'lease', write_lease(held_lease.generation, 0, '', '') end

-- WRITE

--@include holding
--@include cataloguing
--@include lifetime
--@include announcing
--@include finishing

-- HSET comes first: a full server refuses only the first write of a script, so a refusal leaves nothing written.
call('HSET', head, 'facts', write_facts(facts), 'refs', after, 'body', body,
  'receipts', with_receipt(stored.known, tag, meaning), unpack(fields))
if count > 0 then
  call('RPUSH', log, unpack(ARGV, records, records + count - 1))
  call('HSET', nodes, unpack(graph.places))
end
if #graph.jumps > 0 then call('RPUSH', jumps, unpack(graph.jumps)) end
if #set > 0 then call('HSET', state, unpack(set)) end
if #drop > 0 then call('HDEL', state, unpack(drop)) end
if #answered > 0 then call('HDEL', head, unpack(answered)) end
move_holds(holds, blobs, acquired, kept, values, had, hold, grace, now, orphans)
list_entry(catalogues, entry, facts.committed, hold, moves_entry, now)
expire_session(facts, deadline, had_deadline, head, log, nodes, jumps, dead, state)
if finished then finish_stream(streams, events, finished, sharded) end
announce(sharded, head, 'committed')
return {'committed', session, revision, facts.epoch + 0, finished and 1 or 0}
