// swift-tools-version: 6.0
import Foundation
import PackageDescription

// `scripts/swift.sh` and `scripts/ios.sh` put a copy of this folder together with what uniffi generates and with the library: as an
// XCFramework for Apple's systems, on Linux as headers of a library that the linker is told of.
let framework = "AmpouleNativeFFI.xcframework"
let isApple = FileManager.default.fileExists(atPath: Context.packageDirectory + "/" + framework)
let library: Target = isApple ? .binaryTarget(name: "AmpouleNativeFFI", path: framework) : .systemLibrary(name: "AmpouleNativeFFI")

let package = Package(
    name: "ampoule",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "Ampoule", targets: ["Ampoule"])],
    targets: [
        library,
        .target(name: "AmpouleNative", dependencies: ["AmpouleNativeFFI"], swiftSettings: [.swiftLanguageMode(.v5)]),
        .target(name: "Ampoule", dependencies: ["AmpouleNative"], resources: [.copy("PrivacyInfo.xcprivacy")]),
        .target(name: "Fixtures", dependencies: ["Ampoule"], path: "Tests/Fixtures"),
        .testTarget(name: "AmpouleTests", dependencies: ["Ampoule", "Fixtures", "Guide"], resources: [.copy("resource.txt")]),
        // README.md's samples.
        .executableTarget(name: "Guide", dependencies: ["Ampoule"], path: "Tests/Guide"),
    ] + (isApple ? [] : [
        .executableTarget(name: "Overhead", dependencies: ["Ampoule", "Fixtures"], path: "Tests/Overhead"),
        .executableTarget(name: "Soak", dependencies: ["Ampoule", "Fixtures"], path: "Tests/Soak"),
    ]),
    swiftLanguageModes: [.v6]
)
