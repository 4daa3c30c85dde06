-- release: let go of a lease if the caller is its last holder; otherwise change nothing.
--
-- KEYS   1 head  hash  the field `lease`
--
-- ARGV   1 session  str  session id, echoed
--        2 owner    str  who holds it
--        3 token    str  what it was acquired with
--        4 request  str  which release this is: a retry is told what it did
--
-- Reply  released <session> <generation>       it is free; the generation stays, so it never repeats
--        lost <session> <why>                  it is expired, taken, released or gone; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored bytes break a law; nothing written
--
-- Order  the token decides, so a release that comes late clears no successor.
-- Cost   one round trip, three commands.

--@include refuse
--@include head
--@include clock
--@include lease

local head = KEYS[1]
local session, owner, token, request = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- CHECK

local lease, holder, wrong = open_lease(head)
if wrong then return refuse(session, wrong) end
if holder.is_deleted then return {'deleted', session} end
if lease and lease.token == '' and lease.owner == request then return {'released', session, lease.generation} end
local why = lost(lease, token, owner, milliseconds())
if why then return {'lost', session, why} end

-- WRITE

redis.call('HSET', head, 'lease', write_lease(lease.generation, 0, '', request))
return {'released', session, lease.generation}
