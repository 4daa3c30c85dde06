-- acquire: acquire a session's lease unless another owner holds it; otherwise change nothing.
--
-- KEYS   1 head   hash  the field `lease`
--        2 log    list  node records, counted
--        3 nodes  hash  node id -> position, counted
--        4 jumps  list  position:parent position, counted
--        5 dead   hash  position -> node id, counted
--        6 state  hash  private components, counted
--
-- ARGV   1 session    str  session id, echoed
--        2 owner      str  the worker that asks, the owner of the lease
--        3 token      str  made by the caller, without blanks; identifies the lease
--        4 ttl        int  ms from now until the lease expires
--        5 remains    int  ms by which a head that has only a lease outlives it
--        6 access     str  owner of the session for whom the caller acts; '' for a trusted caller
--
-- Reply  acquired <session> <generation> <deadline> <until> <before> <owner> <generation> <deadline>
--                                              the caller holds the lease until <deadline> (ms since 1970); the session
--                                              expires at <until> (0: never); before is lapsed if another lease had
--                                              expired (its owner, generation and deadline follow), else ''
--        busy <session> <owner> <generation> <deadline>
--                                              another owner holds it until <deadline>; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  an owner that acquires its own live lease again keeps the generation, so a call sent twice has the effect of
--        one. With another token the same owner replaces its own lease, and the former token is no longer valid.
-- Cost   one round trip, about eight commands.

--@include int64
--@include refuse
--@include head
--@include clock
--@include lease

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, owner, token, ttl, remains = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local access = ARGV[6]

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
local wrong = broken or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if stored.deleted then return {'deleted', session} end
local lease = stored.lease and read_lease(stored.lease)
if lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end

local now = milliseconds()
local is_live = lease and lease.deadline > now
if is_live and lease.owner ~= owner then
  return {'busy', session, lease.owner, lease.generation, lease.deadline}
end
local generation, deadline = is_live and lease.generation or add64(lease and lease.generation or '0', '1'), now + ttl
if not generation then return refuse(session, {'corrupt', 'head', 'its lease cannot be counted further'}) end
if is_live then deadline = math.max(deadline, lease.deadline) end
local lapsed = lease and lease.token ~= '' and not is_live
local before = lapsed and {'lapsed', lease.owner, lease.generation, lease.deadline} or {'', '', '0', 0}
local is_alone = not facts and redis.call('HEXISTS', head, 'meta') == 0
local lives = lives_until(head, facts, is_alone, now)

-- WRITE

redis.call('HSET', head, 'lease', write_lease(generation, deadline, token, owner))
if is_alone then redis.call('PEXPIREAT', head, deadline + remains) end
return {'acquired', session, generation, deadline, lives, unpack(before)}
