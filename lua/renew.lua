-- renew: extend the lease if the caller still holds it; otherwise change nothing.
--
-- KEYS   1 head  hash  the field `lease`
--
-- ARGV   1 session  str  session id, echoed
--        2 owner    str  the owner of the lease
--        3 token    str  the token that it was acquired with
--        4 ttl      int  ms from now until it expires; a later deadline is kept
--        5 remains  int  ms by which a head that has only a lease outlives it
--        6 access   str  owner of the session for whom the caller acts; '' for a trusted caller
--
-- Reply  renewed <session> <generation> <deadline> <until>
--                                              the caller holds the lease until <deadline> (ms since 1970); the session
--                                              expires at <until> (0: never)
--        lost <session> <why>                  the lease is expired, taken, released or gone; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--
-- Order  an expired lease is not renewed, even if no other worker took it: its holder may know that it expired.
-- Cost   one round trip, three commands.

--@include refuse
--@include numbers
--@include head
--@include clock
--@include lease

local head = KEYS[1]
local session, owner, token, ttl, remains = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local access = ARGV[6]

-- CHECK

local lease, holder, wrong = open_lease(head, access)
if wrong then return refuse(session, wrong) end
if holder.is_deleted then return {'deleted', session} end
local now = milliseconds()
local why = lost(lease, token, owner, now)
if why then return {'lost', session, why} end
local deadline = math.max(lease.deadline, now + ttl)
local expires = math.max(deadline + remains, now + redis.call('PTTL', head))
local lives = lives_until(head, holder.facts, holder.is_alone, now)

-- WRITE

redis.call('HSET', head, 'lease', write_lease(lease.generation, deadline, token, owner))
if holder.is_alone then redis.call('PEXPIREAT', head, expires) end
return {'renewed', session, lease.generation, deadline, lives}
