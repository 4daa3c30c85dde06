-- Documents: named values that a session keeps instead of a graph. The hash `documents` has one field for each. A name
-- is a kind, which is one letter, and a key. The zset `names` has the same names in their order, except those of parts.
-- A part is a document of the kind `p`. It is found by its name only, and its content never changes.
-- The head's field `documents` is their account: `revision count listed hold`: the number of writes, of fields, and of
-- names, and the time until which the catalogue lists the session.

-- Decodes the account (false: no documents); nil if it is unreadable.
local function read_account(text)
  if not text then return {revision = 0, count = 0, listed = 0, hold = ''} end
  local revision, count, listed, hold = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  if not revision or is_odd(revision) or is_odd(count) or is_odd(listed) or is_odd(hold) then return nil end
  return {revision = revision + 0, count = count + 0, listed = listed + 0, hold = hold}
end

local function write_account(account)
  return string.format('%.0f %.0f %.0f %s', account.revision, account.count, account.listed, account.hold)
end

local function is_part(name)
  return string.byte(name) == 112
end

-- Reads the account of a session, and compares it with the sizes of both keys. Returns nil and the rest of a reply on a
-- fault.
local function open_documents(head, documents, names)
  local stored = redis.pcall('HGET', head, 'documents')
  if type(stored) == 'table' then return nil, unusable('head', stored) end
  local account = read_account(stored)
  if not account then return nil, {'corrupt', 'head', 'its account of documents is unreadable'} end
  if not stored and redis.call('EXISTS', documents, names) > 0 then
    return nil, {'evicted', 'head', 'is gone, documents of the session remain'}
  end
  local wrong = mismatch('documents', 'HLEN', documents, account.count)
    or mismatch('names', 'ZCARD', names, account.listed)
  if wrong then return nil, wrong end
  return account
end
