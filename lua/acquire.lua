-- acquire: acquire a session's lease unless another claim holds it; otherwise change nothing.
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
--        7 reenter    str  '1' to take over a live lease of the same owner; '' to be refused as any other caller
--
-- Reply  acquired <session> <generation> <deadline> <until> <before> <owner> <generation> <deadline>
--                                              the caller holds the lease until <deadline> (ms since 1970); the session
--                                              expires at <until> (0: never); before is lapsed if another lease had
--                                              expired (its owner, generation and deadline follow), else ''
--        busy <session> <owner> <generation> <deadline>
--                                              another claim holds it until <deadline>; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  owner and token identify a claim. A claim that is sent twice keeps its generation and has the effect of one.
--        An owner that re-enters gets a new generation, and its former token is no longer valid.
-- Cost   one round trip, about eight commands.

--@include int64
--@include refuse
--@include numbers
--@include head
--@include clock
--@include lease

local head, log, nodes, jumps, dead, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local session, owner, token, ttl, remains = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local access, reenters = ARGV[6], ARGV[7] == '1'

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
local wrong = broken or facts and torn(facts, log, nodes, jumps, dead, state)
if wrong then return refuse(session, wrong) end
if stored.deleted then return {'deleted', session} end
local lease = stored.lease and read_lease(stored.lease)
if lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end

local now = milliseconds()
local is_live = lease and lease.deadline > now
local is_own = is_live and lease.owner == owner
local is_again = is_own and lease.token == token
if is_live and not (is_again or is_own and reenters) then
  return {'busy', session, lease.owner, lease.generation, lease.deadline}
end
local generation, deadline = is_again and lease.generation or add64(lease and lease.generation or '0', '1'), now + ttl
if not generation then return refuse(session, {'corrupt', 'head', 'its lease cannot be counted further'}) end
if is_live then deadline = math.max(deadline, lease.deadline) end
local lapsed = lease and lease.token ~= '' and not is_live
local before = lapsed and {'lapsed', lease.owner, lease.generation, lease.deadline} or {'', '', '0', 0}
local is_alone = not (facts or is_begun(head))
-- The record of a past session may expire later than the lease.
local expires = math.max(deadline + remains, now + redis.call('PTTL', head))
local lives = lives_until(head, facts, is_alone, now)

-- WRITE

redis.call('HSET', head, 'lease', write_lease(generation, deadline, token, owner))
if is_alone then redis.call('PEXPIREAT', head, expires) end
return {'acquired', session, generation, deadline, lives, unpack(before)}
