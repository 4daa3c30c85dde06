-- renew: let a lease run its time anew if the caller still holds it; otherwise change nothing.
--
-- KEYS   1 head  hash  the field `lease`
--
-- ARGV   1 session  str  session id, echoed
--        2 owner    str  who holds it
--        3 token    str  what it was acquired with
--        4 ttl      int  ms from now until it runs out; it never ends earlier than it would have
--        5 remains  int  ms that a head which holds nothing but a lease outlives it
--
-- Reply  renewed <session> <generation> <deadline> <until>
--                                              held until <deadline> (ms since 1970), the session itself until <until>
--                                              (0: for ever)
--        lost <session> <why>                  it is expired, taken, released or gone; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored bytes break a law; nothing written
--
-- Order  a lease whose time is up is not revived, even where nobody took it: its holder may have been told so.
-- Cost   one round trip, three commands.

--@include refuse
--@include head
--@include clock
--@include lease

local head = KEYS[1]
local session, owner, token, ttl, remains = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

-- CHECK

local lease, holder, wrong = open_lease(head)
if wrong then return refuse(session, wrong) end
if holder.is_deleted then return {'deleted', session} end
local now = milliseconds()
local why = lost(lease, token, owner, now)
if why then return {'lost', session, why} end
local deadline = math.max(lease.deadline, now + ttl)
local lives = lives_until(head, holder.facts, holder.is_alone, now)

-- WRITE

redis.call('HSET', head, 'lease', write_lease(lease.generation, deadline, token, owner))
if holder.is_alone then redis.call('PEXPIREAT', head, deadline + remains) end
return {'renewed', session, lease.generation, deadline, lives}
