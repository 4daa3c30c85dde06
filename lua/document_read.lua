-- document_read: return documents of a session by name, by a pointer or in a page, with their children; reads only.
--
-- KEYS   1 head       hash  owner, account of the documents, deletion marker of the session
--        2 documents  hash  name -> content
--        3 names      zset  names of the documents that are listed, in their order
--
-- ARGV   1 session   str    session id, echoed
--        2 access    str    owner of the session for whom the caller acts; '' for a trusted caller
--        3 children  str    kind of the documents to return with each: those whose key begins with its key and a NUL;
--                           '' for none
--        4 how       str    names: those of the names that follow; page: those listed between two names; pointed: the
--                           one that a pointer names
--        5 what      bytes  names: the number of names that are read without children, then these and the others; page:
--                           the bounds of ZREVRANGEBYLEX and the maximum number; pointed: the name of the pointer, and
--                           the kind of the document. The pointer's content up to a NUL NUL is the key
--
-- Reply  documents <session> <revision> <row> ...  for each document three elements: name, content and number of
--                                              children, then name and content of each child. A pointer precedes its
--                                              document. Documents that do not exist are left out
--        absent <session>                      there are no documents, or the session is another owner's than `access`
--        deleted <session>                     the session was deleted
--        corrupt <session> <family> <reason>   stored data violates an invariant
--        evicted <session> <family> <reason>   a key of the session is gone
--
-- Order  a script, and not native commands, because the names to read depend on documents that are read.
-- Cost   one round trip; five commands, and two for each document.

--@include refuse
--@include numbers
--@include head
--@include documents

local head, documents, names = KEYS[1], KEYS[2], KEYS[3]
local session, access, children, how, what = ARGV[1], ARGV[2], ARGV[3], ARGV[4], 5
local call = redis.call

-- CHECK

local stored = redis.pcall('HMGET', head, 'facts', 'owner', 'deleted', 'meta')
if stored.err then return refuse(session, unusable('head', stored)) end
if is_foreign(access, stored[2], stored[1] or stored[4]) then return {'absent', session} end
if stored[3] then return {'deleted', session} end
local account, wrong = open_documents(head, documents, names)
if wrong then return refuse(session, wrong) end
if account.revision == 0 then return {'absent', session} end

local reply = {'documents', session, account.revision}
local function add(name, with_children)
  local content = call('HGET', documents, name)
  if not content then return nil end
  local at = #reply
  reply[at + 1], reply[at + 2], reply[at + 3] = name, content, 0
  if with_children and children ~= '' then
    local below = children .. string.sub(name, 2) .. '\0'
    local found = call('ZRANGEBYLEX', names, '[' .. below, '(' .. below .. '\255')
    reply[at + 3] = #found
    for _, child in ipairs(found) do
      reply[#reply + 1] = child
      reply[#reply + 1] = call('HGET', documents, child)
    end
  end
  return content
end

if how == 'pointed' then
  local content = add(ARGV[what], false)
  local key = content and string.match(content, '^(.-)%z%z')
  if key then add(ARGV[what + 1] .. key, true) end
elseif how == 'page' then
  local found = call('ZREVRANGEBYLEX', names, ARGV[what], ARGV[what + 1], 'LIMIT', 0, ARGV[what + 2])
  for _, name in ipairs(found) do add(name, true) end
else
  local alone = tonumber(ARGV[what])
  for at = what + 1, #ARGV do add(ARGV[at], at > what + alone) end
end
return reply
