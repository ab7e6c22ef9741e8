// A js-libp2p node that runs AutoNAT of both versions, for the tests; commands as in peer.mjs.
//
// On loopback nobody would be dialled. So it believes to be at a public address, which leads to
// where it listens: PUBLIC below is rewritten when it dials, as our side does in the test.

import { createInterface } from 'node:readline'

Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const { createLibp2p } = await import('libp2p')
const { noise } = await import('@libp2p/noise')
const { yamux } = await import('@libp2p/yamux')
const { identify, identifyPush } = await import('@libp2p/identify')
const { tcp } = await import('@libp2p/tcp')
const { autoNAT } = await import('@libp2p/autonat')
const { autoNATv2 } = await import('@libp2p/autonat-v2')
const { multiaddr } = await import('@multiformats/multiaddr')

const PUBLIC = '/ip4/8.8.8.8/'
const LOOPBACK = '/ip4/127.0.0.1/'
const [version, port] = process.argv.slice(2)

const redirected = components => {
  const transport = tcp()(components)
  const dial = transport.dial.bind(transport)
  transport.dial = (address, options) =>
    dial(multiaddr(address.toString().replace(PUBLIC, LOOPBACK)), options)
  return transport
}

const node = await createLibp2p({
  addresses: { listen: [`${LOOPBACK}tcp/${port}`] },
  transports: [redirected],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    autoNAT: version === '1' ? autoNAT() : autoNATv2()
  },
  connectionGater: { denyDialMultiaddr: () => false },
  connectionMonitor: { enabled: false }
})

// Somebody saw it there; it asks its peers to try. What it announces by itself, it takes for granted.
node.components.addressManager.addObservedAddr(multiaddr(`${PUBLIC}tcp/${port}`))

const write = line => process.stdout.write(JSON.stringify(line) + '\n')

const commands = {
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address))
    return { peer: connection.remotePeer.toString() }
  }
}

write({
  event: 'ready',
  peer: node.peerId.toString(),
  addresses: [`${LOOPBACK}tcp/${port}`],
  protocols: node.getProtocols()
})

const input = createInterface({ input: process.stdin })
input.on('line', line => {
  const command = JSON.parse(line)
  commands[command.do](command).then(
    result => write({ id: command.id, result: result ?? null }),
    error => write({ id: command.id, error: { name: error.name, message: error.message } })
  )
})
input.on('close', () => process.exit(0))
