-- release: release the lease if the caller still holds it; otherwise change nothing.
--
-- KEYS   1 head  hash  the field `lease`
--
-- ARGV   1 session  str  session id, echoed
--        2 owner    str  the owner of the lease
--        3 token    str  the token that it was acquired with
--        4 request  str  unique to this release; the lease stores it, so that a retry gets the first reply
--        5 access   str  owner of the session for whom the caller acts; '' for a trusted caller
--
-- Reply  released <session> <generation>       the lease is free; the generation is kept, so it never repeats
--        lost <session> <why>                  the lease is expired, taken, released or gone; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--
-- Order  the script compares the token, so a late release does not end the lease of the next holder.
-- Cost   one round trip, three commands.

--@include refuse
--@include numbers
--@include head
--@include clock
--@include lease

local head = KEYS[1]
local session, owner, token, request, access = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- CHECK

local lease, holder, wrong = open_lease(head, access)
if wrong then return refuse(session, wrong) end
if holder.is_deleted then return {'deleted', session} end
if lease and lease.token == '' and lease.owner == request then return {'released', session, lease.generation} end
local why = lost(lease, token, owner, milliseconds())
if why then return {'lost', session, why} end

-- WRITE

redis.call('HSET', head, 'lease', write_lease(lease.generation, 0, '', request))
return {'released', session, lease.generation}
