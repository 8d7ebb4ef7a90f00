-- Three roles for one study database: run it in that database as a superuser, or as its owner with
-- the right to create roles. It may be run again.
--
--     psql sgquant -v worker_password="'...'" -v reader_password="'...'" \
--         -v owner_password="'...'" -f storage/postgresql-roles.sql
--
-- Without a password a role can only log in where pg_hba.conf asks for none.

\set ON_ERROR_STOP on
\if :{?owner_password} \else \set owner_password NULL \endif
\if :{?worker_password} \else \set worker_password NULL \endif
\if :{?reader_password} \else \set reader_password NULL \endif

SELECT 'CREATE ROLE ' || name || ' LOGIN'
FROM (VALUES ('sgquant_owner'), ('sgquant_worker'), ('sgquant_reader')) AS roles (name)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

ALTER ROLE sgquant_owner PASSWORD :owner_password;
ALTER ROLE sgquant_worker PASSWORD :worker_password;
ALTER ROLE sgquant_reader PASSWORD :reader_password;

-- The owner makes and upgrades the tables.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO sgquant_owner;
GRANT USAGE ON SCHEMA public TO sgquant_worker, sgquant_reader;

-- Tables that are there already.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO sgquant_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO sgquant_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO sgquant_reader;

-- Tables that the owner will make.
ALTER DEFAULT PRIVILEGES FOR ROLE sgquant_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO sgquant_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE sgquant_owner IN SCHEMA public
    GRANT USAGE, SELECT ON SEQUENCES TO sgquant_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE sgquant_owner IN SCHEMA public
    GRANT SELECT ON TABLES TO sgquant_reader;
