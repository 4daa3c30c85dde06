-- document_write: put and remove documents of a session together, if others are as expected; a refusal changes none.
--
-- KEYS   1 head            hash  the fields `documents`, `meta` and `owner`
--        2 log             list  node records; must not exist
--        3 nodes           hash  node id -> position; must not exist
--        4 jumps           list  position:parent position; must not exist
--        5 dead            hash  position -> node id; must not exist
--        6 state           hash  private components; must not exist
--        7 sessions        zset  catalogue entry -> last commit (ms)
--        8 expiries        zset  catalogue entry -> time until which it stays (ms)
--        9 owned           zset  as sessions, for the sessions of `owner`; not used without one
--       10 owned_expiries  zset  as expiries, for the sessions of `owner`; not used without one
--       11 documents       hash  name -> content
--       12 names           zset  names of the documents that are listed, in their order
--
-- ARGV   1 session      str    session id, echoed
--        2 default_ttl  int    ms until a session without its own ttl expires; 0 for never
--        3 grace        int    ms a catalogue entry may outlive its session
--        4 access       str    owner for whom the caller acts; '' for a trusted caller
--        5 owner        str    owner that the caller expects the session to have, whose catalogue is in KEYS; '' for
--                              none
--        6 meta         bytes  the record of a new session
--        7 revision     int    revision of the documents that the caller expects; '' for any
--        8 expected     int    number of expected documents
--        9 put          int    number of documents that replace others
--       10 added        int    number of documents that are stored only if none has their name
--       11 removed      int    number of documents to remove
--       12 values       bytes  for each expected document its name, its state (= has the content, + exists, - is
--                              absent) and its content ('' for the latter two); for each put and each added one its
--                              name and content; the names of those to remove
--
-- Reply  written <session> <revision>          the documents are stored; their new revision
--        unlike <session> <revision> <index> <state> <content> ...
--                                              the expected documents at these places (from 0) are not as expected:
--                                              state = and the content, or - and ''; nothing written
--        stale <session> <revision>            the documents have another revision; nothing written
--        taken <session> <name>                a part of that name has another content; nothing written
--        graph <session>                       the session has a graph; nothing written
--        foreign <session>                     the session is another owner's than `access`; nothing written
--        owner <session> <owner>               the session has another owner than a trusted caller expects; nothing
--                                              written
--        deleted <session>                     the session was deleted; nothing written
--        corrupt <session> <family> <reason>   stored data violates an invariant; nothing written
--        evicted <session> <family> <reason>   a key of the session is gone; nothing written
--
-- Order  the head is written first, because a full server refuses only the first write of a script.
--        Each write moves the deadline of the session and of its documents, as a commit does.
-- Cost   one round trip; some 16 commands, and three for each document.

--@include int64
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
local documents, names = KEYS[11], KEYS[12]
local session, default_ttl, grace = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local access, owner, meta, revision = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local expected, put, added, removed = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local values = 12
local puts = values + 3 * expected
local adds = puts + 2 * put
local removes = adds + 2 * added
local call = redis.call

-- CHECK

local facts, broken, stored = open_head(head, {log, nodes, jumps, dead, state}, access)
if broken then return refuse(session, broken) end
if stored.deleted then return {'deleted', session} end
if facts then return {'graph', session} end
if access == '' and owner ~= stored.owner then return {'owner', session, stored.owner} end
local catalogues = catalogues_of(stored.next_owner, sessions, expiries, owned, owned_expiries)
local account, wrong = open_documents(head, documents, names)
wrong = wrong or unusable_catalogue(catalogues)
if wrong then return refuse(session, wrong) end
local unlike = {'unlike', session, account.revision}
for at = 0, expected - 1 do
  local from = values + 3 * at
  local name, expects, content = ARGV[from], ARGV[from + 1], ARGV[from + 2]
  local is_like, found
  if expects == '=' then
    found = call('HGET', documents, name)
    is_like = found == content
  else
    is_like = (call('HEXISTS', documents, name) == 1) == (expects == '+')
    found = not is_like and call('HGET', documents, name)
  end
  if not is_like then
    unlike[#unlike + 1], unlike[#unlike + 2], unlike[#unlike + 3] = at, found and '=' or '-', found or ''
  end
end
if #unlike > 3 then return unlike end
if revision ~= '' and tonumber(revision) ~= account.revision then return {'stale', session, account.revision} end

-- Plan the new documents. `is_new` has the names that are stored by now; `writes` are the arguments of HSET.
local is_new, writes, listed = {}, {}, {}
local function plan(at, only_new)
  local name, content = ARGV[at], ARGV[at + 1]
  local had = is_new[name] or call('HEXISTS', documents, name) == 1
  if had and is_part(name) then return is_new[name] or call('HGET', documents, name) == content end
  if had and only_new then return true end
  writes[#writes + 1], writes[#writes + 2] = name, content
  if had then return true end
  is_new[name] = true
  account.count = account.count + 1
  if not is_part(name) then
    listed[#listed + 1], listed[#listed + 2] = 0, name
    account.listed = account.listed + 1
  end
  return true
end
for at = puts, removes - 2, 2 do
  if not plan(at, at >= adds) then return {'taken', session, ARGV[at]} end
end
local gone = {}
for at = removes, removes + removed - 1 do
  local name = ARGV[at]
  if call('HEXISTS', documents, name) == 1 then
    gone[#gone + 1] = name
    account.count = account.count - 1
    if not is_part(name) then account.listed = account.listed - 1 end
  end
end

local lease = stored.lease and read_lease(stored.lease)
if lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
local now = milliseconds()
local deadline = deadline_of('', stored.ttl, default_ttl, lease, now)
local hold, entry = hold_of(deadline, grace), entry_of(session, stored.parent)
local moves = hold ~= account.hold
account.hold, account.revision = hold, account.revision + 1
local fields = {}
fields[1], fields[2] = 'documents', write_account(account)
if call('HEXISTS', head, 'meta') == 0 then fields[3], fields[4] = 'meta', meta end
if stored.owner ~= stored.next_owner then fields[#fields + 1], fields[#fields + 2] = 'owner', stored.next_owner end

-- WRITE

--@include cataloguing

call('HSET', head, unpack(fields))
for from = 1, #writes, 1000 do call('HSET', documents, unpack(writes, from, math.min(from + 999, #writes))) end
for from = 1, #listed, 1000 do call('ZADD', names, unpack(listed, from, math.min(from + 999, #listed))) end
for from = 1, #gone, 1000 do
  call('HDEL', documents, unpack(gone, from, math.min(from + 999, #gone)))
  call('ZREM', names, unpack(gone, from, math.min(from + 999, #gone)))
end
for _, key in ipairs({head, documents, names}) do
  if deadline > 0 then call('PEXPIREAT', key, deadline) else call('PERSIST', key) end
end
list_entry(catalogues, entry, string.format('%.0f', now), hold, moves, now)
return {'written', session, account.revision}
