#!/bin/sh
# Roles of the database and their passwords, as the superuser: `roles.sh owner` before migrate, `roles.sh others` after it.
# docker-compose.yml runs it in the database's image. Passwords are files in $SECRETS; they may be changed and it run again.
set -eu
roles=${ROLES:-/sql/roles} secrets=${SECRETS:-/run/secrets}
PGPASSWORD=$(cat "$secrets/superuser_password")
export PGPASSWORD PGUSER="${PGUSER:-postgres}" PGDATABASE="${PGDATABASE:-esp}"

# FILE ROLE SECRET. The password goes through psql's input, never through a command line that `ps` shows.
role() {
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --file "$roles/$1.sql"
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 <<SQL
\\set password \`cat $secrets/$3\`
ALTER ROLE $2 PASSWORD :'password';
SQL
}

case ${1:-} in
  owner) role owner esp_ingest_owner owner_password ;;
  others)
    role writer esp_ingest writer_password
    role api esp_ingest_api api_password
    role reader esp_ingest_reader reader_password
    ;;
  *) echo "usage: roles.sh owner|others" >&2; exit 2 ;;
esac
